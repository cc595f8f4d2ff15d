"""A sheet of pictures, each beside itself under its mask, with the colours of the classes below."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from petseg.classes import IGNORED, Classes
from petseg.data.folders.pair_files import PairFiles
from petseg.picture_formats import open_picture

TILE_WIDTH, TILES_ACROSS, GAP = 240, 3, 8  # pixels, pairs, pixels
LINE = 18  # pixels of a line of text
OPACITY = 0.6
DIMMED = 0.25  # brightness of what is in no class


class Overlays:
    """Collects some pairs, evenly spread over all, and draws them.

    Args:
      classes: the classes.
      pairs: number of all pairs.
      shown: number of pairs on the sheet, at most.
    """

    def __init__(self, classes: Classes, pairs: int, shown: int):
        self._classes, self._tiles = classes, list[Image.Image]()
        self._due = {round(place) for place in np.linspace(0, pairs - 1, min(shown, pairs))}
        self._owed = self._seen = 0

    def add(self, split: str, pair: PairFiles) -> None:
        """Takes note of the next pair; one with a fault is not shown, but the next is in its place."""
        self._owed += self._seen in self._due
        self._seen += 1
        if self._owed and pair.image and pair.ids is not None:
            self._owed -= 1
            self._tiles.append(self._tile(f"{split}: {pair.name}", pair.image, pair.ids))

    def sheet(self) -> Image.Image | None:
        """The sheet; None if there is no pair to show."""
        if not self._tiles:
            return None
        across = min(TILES_ACROSS, len(self._tiles))
        rows = [self._tiles[i : i + across] for i in range(0, len(self._tiles), across)]
        width = across * (self._tiles[0].width + 2 * GAP)
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

    def _tile(self, title: str, image: bytes, ids: np.ndarray) -> Image.Image:
        """A picture, and the same under its mask."""
        size = (TILE_WIDTH, max(1, round(TILE_WIDTH * ids.shape[0] / ids.shape[1])))
        picture = open_picture(io.BytesIO(image)).convert("RGB").resize(size)
        mask = np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))
        pixels = np.asarray(picture, np.float32)
        under = OPACITY * self._classes.palette[mask] + (1 - OPACITY) * pixels
        under = np.where((mask == IGNORED)[..., None], DIMMED * pixels, under)
        tile = Image.new("RGB", (2 * size[0] + 2, size[1] + LINE), "white")
        tile.paste(picture, (0, LINE))
        tile.paste(Image.fromarray(under.astype(np.uint8)), (size[0] + 2, LINE))
        text = title if len(title) < 66 else f"{title[:20]} ... {title[-40:]}"
        ImageDraw.Draw(tile).text((2, 2), text, fill="black", font=_font())
        return tile

    def _legend(self, width: int) -> Image.Image:
        """The colours and names of the classes."""
        entries = [(each.name, each.color) for each in self._classes.members]
        entries.append(("in no class: dark", (0, 0, 0)))
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
