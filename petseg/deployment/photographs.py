"""Photographs as people see them: turned by EXIF, whatever their kind of pixels."""

import logging
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from petseg.errors import DataError
from petseg.picture_formats import exif_orientation, open_picture

logger = logging.getLogger(__name__)
MOST_PIXELS = 89_000_000  # of one picture; Pillow too warns of more, for a small file can unpack to many gigabytes


def read_image(file: Path) -> np.ndarray:
    """The picture in a file as people see it, uint8 [H, W, 3]; see `as_people_see_it`.

    Raises:
      DataError: if the file is no regular file, or as `as_people_see_it`.
      Exception: whatever Pillow raises at what it cannot read.
    """
    with _open(file) as opened:
        return as_people_see_it(opened)


def as_people_see_it(opened: Image.Image) -> np.ndarray:
    """A picture as uint8 [H, W, 3].

    It is turned as its EXIF orientation says; grey, palettes and 16 bits become 8-bit RGB; what is transparent becomes
    white; of an animation, the first frame is taken, and the log says so.

    Raises:
      DataError: if it has too many pixels, of which none is decoded then.
      Exception: whatever Pillow raises at what it cannot read.
    """
    _check_size(opened)
    # The second picture in a JPEG file (MPO) is a preview, or the same in other light.
    if getattr(opened, "is_animated", False) and opened.format != "MPO":
        name, count = getattr(opened, "filename", "") or "image", getattr(opened, "n_frames", 1)
        logger.info("%s: has %d frames; the first is taken", name, count)
    opened.load()
    picture: Image.Image = opened if exif_orientation(opened) == 1 else ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I"):  # 16 bits of grey, or 32 that hold 16
        values = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray((np.clip(values, 0, 65535) / 257).round().astype(np.uint8))
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB"))


def count_pixels(file: Path) -> int:
    """The number of pixels of the picture in a file, as its first bytes say. For one thread at a time.

    Raises:
      DataError, Exception: as `read_image`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is refused
        with _open(file) as opened:
            _check_size(opened)
            return opened.width * opened.height


def _open(file: Path) -> Image.Image:
    """Opens a picture; only the start of its file is read.

    Raises:
      DataError: if it is no regular file: a pipe or a terminal would block until somebody writes to it.
    """
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise DataError(f"{file}: is {what}; must be a picture's file")
    return open_picture(file)


def _check_size(opened: Image.Image) -> None:
    width, height = opened.size
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{width} x {height} pixels are {width * height / 1e6:.0f} million; must be at most "
            f"{MOST_PIXELS / 1e6:.0f} million"
        )
