"""The reader of weight maps (--weight_files): file -> a number of at least 0 for each pixel. Imports no TensorFlow."""

import numpy as np

from petseg.config.data_config import WEIGHT_SCALES
from petseg.data import picture_files
from petseg.data.picture import Picture, PictureError

NOT_FINITE = "holds NaN or infinite values; must be finite: 0 where a pixel is not to count"
NEGATIVE = "holds values below 0; must be at least 0"
ALL_ZERO = "is 0 everywhere; must have a pixel that counts, or the image be left out"


def decode(data: bytes) -> Picture:
    """The weight map of the content of a file of one page; raises PictureError if it is none."""
    return of_picture(picture_files.decode(data).upright())


def of_picture(picture: Picture) -> Picture:
    """The weight map of an upright picture: pixels [H, W, 1], uint8, uint16 or float32.

    32-bit integers become floats. Raises PictureError if it is no weight map.
    """
    if picture.lossy:
        raise PictureError(f"is a weight map in {picture.lossy}, which changes values; must be PNG, TIFF or .npy")
    bands = picture.pixels.shape[2]
    if bands > 1 or picture.palette is not None:
        what = "has a palette of colours" if picture.palette is not None else f"has {bands} channels"
        raise PictureError(f"{what}; a weight map must be grey, one number for each pixel")
    known = picture.pixels.dtype.name in WEIGHT_SCALES
    pixels = picture.pixels if known else picture.pixels.astype(np.float32)
    if wrong := problem(pixels):
        raise PictureError(wrong)
    return Picture(pixels, picture.format, picture.mode, pages=picture.pages)


def problem(weight: np.ndarray) -> str:
    """The fault in the values of a weight map; empty if there is none."""
    if not np.isfinite(weight).all():
        return NOT_FINITE
    if weight.min() < 0:
        return NEGATIVE
    return "" if weight.any() else ALL_ZERO
