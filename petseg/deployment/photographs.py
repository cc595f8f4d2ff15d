"""Reads photographs as 8-bit RGB: EXIF orientation, grey, palettes, 16 bits, transparency and animations."""

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
MOST_PIXELS = 89_000_000  # of one image, as in Pillow: a small file can decompress to many gigabytes


def read_image(file: Path) -> np.ndarray:
    """Reads a file as uint8 [H, W, 3]; see `to_rgb`.

    Raises:
      DataError: if the file is not a regular file, or as `to_rgb`.
      Exception: any error of Pillow's decoders.
    """
    with _open(file) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Converts a Pillow image to uint8 [H, W, 3].

    The EXIF orientation is applied; grey, palettes and 16 bits become 8-bit RGB; transparency becomes white; of an
    animation, the first frame is taken, which is logged.

    Raises:
      DataError: if it has too many pixels; nothing is decoded then.
      Exception: any error of Pillow's decoders.
    """
    _check_size(image)
    # Further images in a JPEG file (MPO) are previews or other exposures.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        name, count = getattr(image, "filename", "") or "image", getattr(image, "n_frames", 1)
        logger.info("%s: has %d frames; uses the first", name, count)
    image.load()
    if exif_orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, or 32 that hold 16
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(values, 0, 65535) / 257).round().astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def count_pixels(file: Path) -> int:
    """The number of pixels of an image, from the header of its file. Not thread-safe.

    Raises:
      DataError, Exception: as `read_image`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error here
        with _open(file) as image:
            _check_size(image)
            return image.width * image.height


def _open(file: Path) -> Image.Image:
    """Opens an image, of which only the header is read.

    Raises:
      DataError: if it is not a regular file: reading a pipe or a terminal would block.
    """
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise DataError(f"{file}: is {what}; must be an image file")
    return open_picture(file)


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{width} x {height} pixels are {width * height / 1e6:.0f} million; must be at most "
            f"{MOST_PIXELS / 1e6:.0f} million"
        )
