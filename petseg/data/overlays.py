"""Draws a sheet of images, their mask overlays and weight maps, with a legend of the classes."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from petseg.classes import IGNORED, Classes
from petseg.data import images
from petseg.data.folders.pair_files import DecodedPair

TILE_WIDTH, MOST_HEIGHT = 240, 480  # pixels of an image on the sheet; limited by the largest JPEG
TILES_ACROSS, GAP = 3, 8  # pairs, pixels
LINE = 18  # pixels of a line of text
OPACITY = 0.6
DIMMED = 0.25  # brightness of ignored pixels


class OverlaySheet:
    """Samples pairs at even distances and draws them."""

    def __init__(self, classes: Classes, pairs: int, shown: int):
        self._classes, self._shown = classes, list[tuple[str, Image.Image, np.ndarray, Image.Image | None]]()
        self._due = {round(place) for place in np.linspace(0, pairs - 1, min(shown, pairs))}
        self._pending = self._seen = 0

    def __len__(self) -> int:
        """The number of sampled pairs."""
        return len(self._shown)

    def add(self, split: str, pair: DecodedPair) -> None:
        """Samples the next pair if it is due; a pair with faults is replaced by the next one."""
        self._pending += self._seen in self._due
        self._seen += 1
        if self._pending and pair.image and pair.picture and pair.ids is not None:
            self._pending -= 1
            height, width = pair.ids.shape
            scale = min(TILE_WIDTH / width, MOST_HEIGHT / height)
            size = max(1, round(width * scale)), max(1, round(height * scale))
            picture = Image.fromarray(images.for_people(pair.picture)).resize(size)
            mask = np.asarray(Image.fromarray(pair.ids).resize(size, Image.Resampling.NEAREST))
            weight = None
            if pair.weight:
                grey = (pair.weight.pixels[..., 0] * (255 / pair.weight.pixels.max())).round().astype(np.uint8)
                weight = Image.fromarray(grey).resize(size, Image.Resampling.NEAREST)
            self._shown.append((f"{split}: {pair.name}", picture, mask, weight))

    def sheet(self) -> Image.Image:
        """Draws the sheet; needs at least one pair."""
        tiles = [self._tile(*each) for each in self._shown]
        across = min(TILES_ACROSS, len(tiles))
        rows = [tiles[i : i + across] for i in range(0, len(tiles), across)]
        width = across * (tiles[0].width + 2 * GAP)
        legend = self._legend(width)
        heights = [max(tile.height for tile in row) + GAP for row in rows]
        sheet = Image.new("RGB", (width, sum(heights) + legend.height), "white")
        top = 0
        for row, height in zip(rows, heights, strict=True):
            for i, tile in enumerate(row):
                sheet.paste(tile, (i * (tile.width + 2 * GAP) + GAP, top))
            top += height
        sheet.paste(legend, (0, top))
        return sheet

    @property
    def _has_weights(self) -> bool:
        return any(weight for *_, weight in self._shown)

    def _tile(self, title: str, picture: Image.Image, mask: np.ndarray, weight: Image.Image | None) -> Image.Image:
        """Draws an image, the same with its mask overlay, and its weight map if there are any on the sheet."""
        pixels = np.asarray(picture, np.float32)
        under = OPACITY * self._classes.palette[mask] + (1 - OPACITY) * pixels
        under = np.where((mask == IGNORED)[..., None], DIMMED * pixels, under)
        width = (2 + self._has_weights) * (TILE_WIDTH + 2) - 2
        tile = Image.new("RGB", (width, picture.height + LINE), "white")
        for i, part in enumerate((picture, Image.fromarray(under.astype(np.uint8)), weight)):
            if part:
                tile.paste(part, (i * (TILE_WIDTH + 2), LINE))
        text = title if len(title) < 66 else f"{title[:20]} ... {title[-40:]}"
        ImageDraw.Draw(tile).text((2, 2), text, fill="black", font=_font())
        return tile

    def _legend(self, width: int) -> Image.Image:
        """Draws colours and names of the classes."""
        entries = [(each.name, each.color) for each in self._classes.members]
        entries.append(("in no class: dark", (0, 0, 0)))
        if self._has_weights:
            entries.append(("weight map: white is its largest", (255, 255, 255)))
        column = max(math.ceil(_font().getlength(name)) for name, _ in entries) + LINE + 3 * GAP
        across = max(1, width // column)
        legend = Image.new("RGB", (width, (math.ceil(len(entries) / across) + 1) * LINE), "white")
        draw = ImageDraw.Draw(legend)
        for i, (name, color) in enumerate(entries):
            left, top = i % across * column + GAP, i // across * LINE + GAP
            draw.rectangle((left, top + 1, left + LINE - 4, top + LINE - 5), fill=color, outline="black")
            draw.text((left + LINE, top), name, fill="black", font=_font())
        return legend


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(12)
