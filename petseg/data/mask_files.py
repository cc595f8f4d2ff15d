"""The reader of mask files: file -> values or colours -> class ids. Imports no TensorFlow.

Folders, TFDS data sets, the checker, training and scoring by path all read masks here.
"""

import dataclasses
import os

import numpy as np

from petseg.classes import UNKNOWN, Classes
from petseg.data import picture_files
from petseg.data.folders import mask_values
from petseg.data.folders.mask_values import MaskCoding, shown_color
from petseg.data.picture import Picture
from petseg.errors import DataError

LARGEST = 65535  # value
RESAMPLED = (
    "as interpolation makes them when a mask is resized, rotated, antialiased or compressed with loss; must be made of "
    "the original mask by nearest neighbour and saved as PNG"
)


class LossyMaskError(DataError):
    """A mask in a format that changes its values."""


@dataclasses.dataclass(frozen=True)
class MaskValues:
    """The content of a mask file."""

    numbers: np.ndarray  # values, or colours as red * 65536 + green * 256 + blue; uint8, uint16 or int32 [H, W]
    colored: bool  # whether they are colours
    # colours of the values, uint8 [256, 3]; None if the file has no palette, or its colours were taken
    palette: np.ndarray | None = None
    single: bool = False  # whether the file has one number for each pixel and no colours at all
    transparent: bool = False  # whether its pixels differ in opacity


def decode(data: bytes, colored: bool | None = None) -> MaskValues:
    """The values of the content of a mask file of one page; see `of_picture`.

    Raises PictureError if it cannot be read.
    """
    return of_picture(picture_files.decode(data).upright(), colored)


def of_picture(picture: Picture, colored: bool | None = None) -> MaskValues:
    """The values of a mask as its file holds it, upright; for `colored` see `values_of`.

    Raises LossyMaskError if the compression of the file changed values, and DataError if it is no mask.
    """
    check_exact(picture)
    opacity = picture.palette is None and picture.alpha_varies  # of a palette, it is for display
    return dataclasses.replace(values_of(picture, colored), transparent=opacity)


def check_exact(picture: Picture) -> None:
    """Raises LossyMaskError if the compression of a mask's file changed values."""
    if picture.lossy:
        kind = "TIFF compressed as " * (picture.format == "TIFF") + picture.lossy
        raise LossyMaskError(
            f"is a mask in {kind}, which changes values at every edge; must be a PNG made of the original mask, or, of "
            "black and white, of np.where(mask > 127, 255, 0)"
        )


def values_of(picture: Picture, colored: bool | None = None) -> MaskValues:
    """The values of a mask.

    Args:
      picture: indices of a palette, whole numbers of any dtype, colours, or 0 and 255 for single bits. Opacity is
        ignored.
      colored: whether to return colours instead of numbers; None: colours if any pixel is not grey.

    Raises:
      DataError: if the mask holds neither.
    """
    if picture.palette is not None:
        if colored:
            return MaskValues(_as_numbers(picture.palette[picture.pixels[..., 0], :3]), True)
        return MaskValues(picture.pixels[..., 0], False, picture.palette[:, :3])
    bands = picture.pixels[..., :-1] if picture.alpha else picture.pixels
    if bands.shape[2] not in (1, 3):
        what = f"has {bands.shape[2]} channels; a mask must hold a number or a colour for each pixel"
        raise DataError(f"{what}; if each channel is a class: np.argmax(array, -1)")
    bands = _whole(bands)
    if bands.shape[2] == 1:
        if colored and bands.max() > 255:
            raise DataError("holds numbers above 255, and the classes have colours as values; must be numbers")
        numbers = bands[..., 0].astype(np.int32) * 0x10101 if colored else bands[..., 0]
        return MaskValues(numbers, bool(colored), single=True)
    grey = bool((bands == bands[..., :1]).all())
    if colored is False and not grey:
        row, column = np.argwhere((bands != bands[..., :1]).any(-1))[0]
        raise DataError(
            f"holds colours ({shown_color(*bands[row, column])} at row {row}, column {column}), and the classes have "
            'numbers as values; must be colours: "value": [red, green, blue]'
        )
    if grey and not colored:
        return MaskValues(bands[..., 0], False)
    if bands.max() > 255:
        raise DataError(f"holds colours of 16 bits, up to {bands.max()}; must be colours of 8 bits, 0 to 255")
    return MaskValues(_as_numbers(bands), True)


def ids_of(values: MaskValues, coding: MaskCoding) -> np.ndarray:
    """Class ids, uint8 [H, W]. Raises DataError if a value is in no class."""
    ids = coding.ids(values.numbers)
    if (ids == UNKNOWN).any():
        hint = "; the mask holds numbers: [1, 2, 3] is a colour unless another class has a number as its value"
        what = _unknown_values(values.numbers, ids == UNKNOWN, coding.classes)
        raise DataError(what + hint if coding.classes.colored and values.single else what)
    return ids


def read(path: str | os.PathLike[str], classes: Classes) -> np.ndarray:
    """Class ids of a mask file, uint8 [H, W].

    Raises DataError if it cannot be read, or a value is in no class; names the file.
    """
    try:
        values = of_picture(picture_files.read(path).upright(), classes.colored)
        return ids_of(values, MaskCoding(classes))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def uniform_pixels(numbers: np.ndarray) -> np.ndarray:
    """Whether a pixel of [H, W] is in a block of 2 x 2 equal ones, as pixels of drawn regions are; bool [H, W]."""
    found = np.zeros(numbers.shape, bool)
    corner = numbers[:-1, :-1]
    block = (corner == numbers[1:, :-1]) & (corner == numbers[:-1, 1:]) & (corner == numbers[1:, 1:])
    for rows in (slice(None, -1), slice(1, None)):
        for columns in (slice(None, -1), slice(1, None)):
            found[rows, columns] |= block
    return found


def _whole(bands: np.ndarray) -> np.ndarray:
    """Numbers [H, W, bands] as uint8 or uint16; raises DataError unless they are whole and in range."""
    low, high = bands.min(), bands.max()
    if bands.dtype.kind == "f":
        wrong = ~np.isfinite(bands) | (bands != np.floor(bands))
        if wrong.any():
            row, column, band = np.argwhere(wrong)[0]
            hint = "; of probabilities, the class: array > 0.5, or np.argmax" if low >= 0 and high <= 1 else ""
            raise DataError(
                f"holds floating point numbers that are not whole ({bands[row, column, band]:.6g} at row {row}, column "
                f"{column}); a mask must hold whole numbers of 0 to {LARGEST}, or colours{hint}"
            )
    if low < 0 or high > LARGEST:
        hint = "; pixels in no class must be 255" if low < 0 else ""
        raise DataError(f"holds values from {low:.0f} to {high:.0f}; must be 0 to {LARGEST}{hint}")
    return bands.astype(np.uint8 if high <= 255 else np.uint16, copy=False)


def _as_numbers(colors: np.ndarray) -> np.ndarray:
    """Colours [H, W, 3] as one number each, int32 [H, W]."""
    return colors.astype(np.int32) @ np.array([0x10000, 0x100, 1], np.int32)


def _unknown_values(numbers: np.ndarray, where: np.ndarray, classes: Classes) -> str:
    """Names the most frequent value of no class and its first pixel."""
    unknown, counts = np.unique(numbers[where], return_counts=True)
    number, count = int(unknown[counts.argmax()]), counts.max()
    row, column = np.argwhere(numbers == number)[0]
    pixels = "1 pixel" if count == 1 else f"{count} pixels"
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    text = (
        f"holds {mask_values.value_text(number, classes.colored)}{more} in no class ({pixels}, the first at row {row}, "
        f"column {column}); must be {mask_values.allowed_values_text(classes)}"
    )
    scattered = len(unknown) > 2 and (where & uniform_pixels(numbers)).sum() < where.sum() / 2
    return f"{text}; these are values {RESAMPLED}" if scattered else text
