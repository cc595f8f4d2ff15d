"""Photographs as people see them: turned by EXIF, whatever their kind of pixels."""

import logging
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from petseg.errors import DataError

logger = logging.getLogger(__name__)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_PIXELS = 89_000_000  # of one picture; Pillow too warns of more, for a small file can unpack to many gigabytes


def read_image(file: Path) -> np.ndarray:
    """A picture as people see it, uint8 [H, W, 3].

    It is turned as its EXIF orientation says; grey, palettes and 16 bits become 8-bit RGB; what is transparent becomes
    white; of an animation, the first frame is taken, and the log says so.

    Raises:
      DataError: if it has too many pixels, of which none is decoded then, or is a folder.
      Exception: whatever Pillow raises at what it cannot read.
    """
    with _open(file) as opened:
        # The second picture of a JPEG is a preview, or the same in other light.
        if getattr(opened, "is_animated", False) and opened.format != "MPO":
            logger.info("%s: has %d frames; the first is taken", file, getattr(opened, "n_frames", 1))
        picture: Image.Image = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I"):  # 16 bits of grey, or 32 that hold 16
            values = np.asarray(picture).astype(np.int64)
            picture = Image.fromarray((np.clip(values, 0, 65535) / 257).round().astype(np.uint8))
        if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.asarray(picture.convert("RGB"))


def count_pixels(file: Path) -> int:
    """The number of pixels of a picture, as its first bytes say.

    Raises:
      DataError, Exception: as `read_image`.
    """
    with warnings.catch_warnings():  # not in `_open`: it is for one thread only
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is refused
        with _open(file) as opened:
            return opened.width * opened.height


def _open(file: Path) -> Image.Image:
    """A picture of which only the header is read."""
    if Path(file).is_dir():
        raise DataError("is a folder; must be a picture's file")
    opened = Image.open(file)
    width, height = opened.size
    if width * height > MOST_PIXELS:
        opened.close()
        raise DataError(
            f"has {width} x {height} pixels, {width * height / 1e6:.0f} million; must be at most "
            f"{MOST_PIXELS / 1e6:.0f} million"
        )
    return opened
