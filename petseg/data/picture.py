"""A picture: pixels [H, W, bands] in their true depth, and what else its file holds. Imports no TensorFlow."""

import dataclasses
import functools
import warnings
from typing import Any

import numpy as np
from PIL import Image

from petseg.config.image_spec import MOST_CHANNELS
from petseg.data.exif_orientation import apply_orientation, read_orientation
from petseg.errors import DataError

MOST_PIXELS = 89_000_000  # of one page, as in Pillow: a small file can decompress to many gigabytes
PALETTED = ("P", "PA")
# The pixels are counted here, so Pillow's own warning would only repeat it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class PictureError(DataError):
    """A file or array cannot be read as a picture; the text does not name it, the caller does."""


class PixelError(PictureError):
    """The pixel values of a picture cannot be used."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as its file holds it."""

    # [H, W, bands], uint8, uint16, int32, uint32 or float32. Of a file with a palette: indices. Single bits are 0 and
    # 255. CMYK, YCbCr and LAB are RGB.
    pixels: np.ndarray
    format: str  # format as Pillow names it, NPY, or ARRAY
    mode: str  # Pillow's mode, or number and dtype of the bands, such as `5 x uint16`
    palette: np.ndarray | None = None  # colours of the indices, uint8 [256, 4] RGBA; None without a palette
    alpha: bool = False  # whether the last band is opacity
    orientation: int = 1  # EXIF orientation, 1 to 8, of pixels that are not turned yet. TIFF files are turned already.
    pages: int = 1  # number of pages, or frames of an animation, in the file
    lossy: str = ""  # name of the compression of the file, such as JPEG, if it changed pixels; otherwise empty

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as stored, not turned."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def upright(self) -> "Picture":
        """The picture rotated according to its EXIF orientation."""
        if self.orientation == 1:
            return self
        return dataclasses.replace(self, pixels=apply_orientation(self.pixels, self.orientation), orientation=1)

    def colors(self) -> "Picture":
        """The picture with colours in place of palette indices."""
        if self.palette is None:
            return self
        colored = self.palette[self.pixels[..., 0]]
        if self.alpha:  # an opacity of each pixel beside the palette's
            colored[..., 3] = self.pixels[..., 1]
        alpha = self.alpha or bool((self.palette[:, 3] < 255).any())
        return dataclasses.replace(self, pixels=colored[..., : 3 + alpha], palette=None, alpha=alpha)

    @functools.cached_property
    def alpha_varies(self) -> bool:
        """Whether the alpha channel varies, so that it carries information."""
        picture = self.colors()
        return picture.alpha and bool(np.ptp(picture.pixels[..., -1]) > 0)


def from_pillow(image: Image.Image) -> Picture:
    """The current frame of a Pillow image."""
    check_size(image.height, image.width)
    return from_frame(image, 1)


def check_size(height: int, width: int) -> None:
    if height * width > MOST_PIXELS:
        raise PictureError(too_many(f"{width} x {height}", height * width))


def too_many(what: str, pixels: int) -> str:
    return f"{what} pixels are {pixels / 1e6:.0f} million; must be at most {MOST_PIXELS / 1e6:.0f} million"


def check_page(page: int | None, pages: int) -> None:
    if page is None and pages > 1:
        raise PictureError(
            f"holds {pages} pages; must hold one, or --pages=examples in training makes each one an example"
        )
    if page is not None and page >= pages:
        raise PictureError(f"holds {pages} pages, and page {page + 1} was asked for")


def from_frame(image: Image.Image, pages: int) -> Picture:
    """Decodes an opened image, or takes over the pixels of one in memory."""
    mode, kind = image.mode, image.format or "PILLOW"
    orientation = 1 if kind == "TIFF" else read_orientation(image)  # Pillow turns TIFF files itself
    image.load()
    facts: dict[str, Any] = {"format": kind, "mode": mode, "orientation": orientation, "pages": pages}
    if mode in PALETTED:
        return Picture(_bands(image), **facts, palette=_palette(image), alpha=mode == "PA")
    if mode.startswith("I;16"):
        return Picture(_bands(image).astype(np.uint16), **facts)
    if mode in ("L", "RGB") and "transparency" in image.info:
        image = image.convert("RGBA" if mode == "RGB" else "LA")
    elif mode in ("RGBa", "La"):
        image = image.convert(mode.upper())
    elif mode not in ("1", "L", "LA", "RGB", "RGBA", "I", "F"):
        image = image.convert("RGB")
    pixels = _bands(image)
    if mode == "1":
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    return Picture(pixels, **facts, alpha=image.mode in ("LA", "RGBA"))


def _bands(image: Image.Image) -> np.ndarray:
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _palette(image: Image.Image) -> np.ndarray:
    """Colours of a palette, uint8 [256, 4], with the opacity that the file gives to each."""
    indices = Image.fromarray(np.arange(256, dtype=np.uint8)[None], "P")
    colors = image.getpalette("RGB") or []
    indices.putpalette(colors + [0] * (768 - len(colors)))
    if "transparency" in image.info:
        indices.info["transparency"] = image.info["transparency"]
    return np.array(indices.convert("RGBA"))[0]


def of_bands(array: np.ndarray, kind: str) -> Picture:
    """A picture of an array [H, W] or [H, W, bands], in one of the dtypes of pictures."""
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] > MOST_CHANNELS):
        raise PictureError(wrong_array(array.shape, array.dtype))
    array = array[..., None] if array.ndim == 2 else array
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype.kind == "i" or array.dtype == np.uint64:
        if not (array.min() >= -(2**31) and array.max() < 2**31):
            raise PictureError(f"holds {array.dtype} values beyond 32 bits; must be 32 bits or less")
        array = array.astype(np.int32)
    elif array.dtype.kind != "u":
        raise PictureError(wrong_array(array.shape, array.dtype))
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    check_size(*array.shape[:2])
    return Picture(array, kind, f"{array.shape[2]} x {array.dtype}")


def wrong_array(shape: tuple[int, ...], dtype: np.dtype) -> str:
    planes_first = len(shape) == 3 and shape[0] <= MOST_CHANNELS < shape[2]
    hint = "; with the channels first: np.moveaxis(array, 0, -1)" if planes_first else ""
    return (
        f"got {dtype} {list(shape)}; must be numbers [height, width] or [height, width, channels] of 1 to "
        f"{MOST_CHANNELS} channels{hint}"
    )
