"""Converts values or colours in mask files to class ids.

A colour is represented by the number red * 65536 + green * 256 + blue.
"""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from petseg.classes import IGNORED, MAX_CLASSES, MIN_CLASSES, UNKNOWN, Classes, Color, SegmentationClass, distinct_color
from petseg.errors import ConfigError, DataError

PALETTED = ("P", "PA")
SHOWN_VALUES = 4  # of one class
ZERO_AND_255 = '{"classes": [{"name": "background", "value": 0}, {"name": "object", "value": 255}]}'


class MaskCoding:
    """Lookup table from values in masks to class ids."""

    def __init__(self, classes: Classes):
        self.classes = classes
        self._numbers, self._ids = value_table(classes)
        small = np.full(2**16, UNKNOWN, np.uint8)
        small[self._numbers[self._numbers < len(small)]] = self._ids[self._numbers < len(small)]
        self._small = small

    def ids(self, values: np.ndarray) -> np.ndarray:
        """Class ids, uint8 [H, W], of values int32 [H, W]; UNKNOWN for values of no class."""
        if not self.classes.colored:
            return self._small[values]
        places = np.minimum(np.searchsorted(self._numbers, values), len(self._numbers) - 1)
        return np.where(self._numbers[places] == values, self._ids[places], np.uint8(UNKNOWN))


def values_in(picture: Image.Image, colored: bool | None) -> tuple[np.ndarray, bool]:
    """Reads the values of a mask.

    Args:
      picture: the mask: an index, a palette, colours, or 0 and 255; 8 or 16 bits. Single bits become 0 and 255, as in
        TensorFlow and OpenCV. Alpha is ignored.
      colored: whether to return colours instead of numbers; None: colours if any pixel is not grey.

    Returns:
      int32 [H, W], and whether the values are colours.

    Raises:
      DataError: if the mask holds neither.
    """
    if picture.mode == "F":
        raise DataError("holds floating point numbers; a mask must hold whole numbers or colours")
    if picture.mode in PALETTED and colored:
        picture = picture.convert("RGB")
    if picture.mode in ("1", "LA", "PA", "RGBA", "RGBX"):
        picture = picture.convert({"1": "L", "LA": "L", "PA": "P"}.get(picture.mode, "RGB"))
    if picture.mode not in ("L", "P", "I", "RGB") and not picture.mode.startswith("I;16"):
        raise DataError(f"has mode {picture.mode}; a mask must hold whole numbers or colours")
    pixels = np.asarray(picture).astype(np.int32)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise DataError(f"holds values from {pixels.min()} to {pixels.max()}; must be 0 to 65535")
    if pixels.ndim == 2:
        if colored and pixels.max() > 255:
            raise DataError("holds numbers above 255, and the classes have colours as values; must be numbers")
        return (pixels * 0x10101, True) if colored else (pixels, False)
    grey = bool((pixels == pixels[..., :1]).all())
    if colored is False and not grey:
        row, column = np.argwhere((pixels != pixels[..., :1]).any(-1))[0]
        raise DataError(
            f"holds colours ({shown_color(*pixels[row, column])} at row {row}, column {column}), and the classes have "
            'numbers as values; must be colours: "value": [red, green, blue]'
        )
    if colored or not grey:
        return pixels @ np.array([0x10000, 0x100, 1], np.int32), True
    return pixels[..., 0], False


def value_text(number: int, colored: bool) -> str:
    """A value or colour as text."""
    return f"colour {shown_color(*_color(number))}" if colored else f"value {number}"


def shown_color(red: int, green: int, blue: int) -> str:
    return f"{red},{green},{blue}"


def allowed_values_text(classes: Classes) -> str:
    """The allowed values as text, for errors."""
    values = [each.value for each in classes.members if not each.more_values]
    ignored = [value for value in classes.ignored if isinstance(value, tuple) == classes.colored]
    if not classes.colored and values == list(range(len(classes))):
        text = f"0 to {len(values) - 1}"
    else:
        text = ", ".join(f"{class_value_text(each)} ({each.name})" for each in classes.members[:12])
        text += ", ..." if len(values) > 12 else ""
    return text + (f", or {', '.join(map(_value_text, ignored))} (in no class)" if ignored else "")


def classes_from_values(found: Sequence[tuple[np.ndarray, bool, bytes]]) -> Classes:
    """Creates a class for each value found in masks.

    Args:
      found: for each mask its distinct values, int32 [N]; whether these are colours; and its palette as RGB bytes,
        empty if it has none. If any mask has colours, the numbers of the others are converted to colours.

    Raises:
      ConfigError: if the number of values is no valid number of classes, or a classes file is needed.
    """
    colored = any(of_colors for _, of_colors, _ in found)
    numbers: set[int] = set()
    for values, of_colors, palette in found:
        numbers.update(_colors(values, palette) if colored and not of_colors else values.tolist())
    if not colored and IGNORED in numbers and len(numbers) == 2:
        raise ConfigError(
            f"the masks hold {min(numbers)} and 255 alone, and 255 is ignored without a classes file; it must be "
            f"{ZERO_AND_255}"
        )
    used = sorted(numbers if colored else numbers - {IGNORED})
    if not MIN_CLASSES <= len(used) <= MAX_CLASSES:
        what = "colours" if colored else "values"
        raise ConfigError(
            f"the masks hold {len(used)} {what}; must be {MIN_CLASSES} to {MAX_CLASSES}, one for each class"
        )
    palette = next((palette for _, _, palette in found if palette), b"")
    members, taken = [], set()
    for i, number in enumerate(used):
        given = _color(number) if colored else tuple(palette[3 * number : 3 * number + 3])
        if len(given) < 3 or given in taken:
            given = next(free for free in map(distinct_color, range(1000)) if free not in taken)
        color = (given[0], given[1], given[2])
        taken.add(color)
        members.append(SegmentationClass(f"class_{i if colored else number}", color if colored else number, color))
    if len(members) == 2:
        members[1] = dataclasses.replace(members[1], foreground=1.0)  # the default of classes files
    return Classes(tuple(members))


def _colors(values: np.ndarray, palette: bytes) -> list[int]:
    """Converts values to colours by a palette, or as shades of grey."""
    return [
        int.from_bytes(palette[3 * value : 3 * value + 3].ljust(3, b"\0"), "big") if palette else value * 0x10101
        for value in values.tolist()
    ]


def encode_png(ids: np.ndarray) -> bytes:
    """Encodes class ids, uint8 [H, W], as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def value_table(classes: Classes) -> tuple[np.ndarray, np.ndarray]:
    """The values of classes and the ignored values, int32 [N], sorted; and their class ids, uint8 [N]."""
    known = {_number(value): i for i, each in enumerate(classes.members) for value in each.values}
    known |= {_number(value): IGNORED for value in classes.ignored if classes.colored == isinstance(value, tuple)}
    numbers = np.array(sorted(known), np.int32)
    return numbers, np.array([known[number] for number in numbers.tolist()], np.uint8)


def _number(value: int | Color) -> int:
    return value if isinstance(value, int) else (value[0] << 16) + (value[1] << 8) + value[2]


def _color(number: int) -> Color:
    return number >> 16, number >> 8 & 255, number & 255


def class_value_text(member: SegmentationClass) -> str:
    """The values of a class as text, the first few of many."""
    more = ", ..." if len(member.values) > SHOWN_VALUES else ""
    return ", ".join(map(_value_text, member.values[:SHOWN_VALUES])) + more


def _value_text(value: int | Color) -> str:
    return str(value) if isinstance(value, int) else f"[{shown_color(*value)}]"
