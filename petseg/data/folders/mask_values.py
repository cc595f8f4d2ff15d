"""Converts values or colours in mask files to class ids.

A colour is represented by the number red * 65536 + green * 256 + blue.
"""

import io

import numpy as np
from PIL import Image

from petseg.classes import IGNORED, UNKNOWN, Classes, Color, SegmentationClass

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


def value_text(number: int, colored: bool) -> str:
    """A value or colour as text."""
    return f"colour {shown_color(*color_of(number))}" if colored else f"value {number}"


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


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes class ids or grey, uint8 [H, W], or colours, uint8 [H, W, 3 or 4], as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def value_table(classes: Classes) -> tuple[np.ndarray, np.ndarray]:
    """The values of classes and the ignored values, int32 [N], sorted; and their class ids, uint8 [N]."""
    known = {color_number(value): i for i, each in enumerate(classes.members) for value in each.values}
    known |= {color_number(value): IGNORED for value in classes.ignored if classes.colored == isinstance(value, tuple)}
    numbers = np.array(sorted(known), np.int32)
    return numbers, np.array([known[number] for number in numbers.tolist()], np.uint8)


def color_number(value: int | Color) -> int:
    """A value as it is, a colour as one number."""
    return value if isinstance(value, int) else (value[0] << 16) + (value[1] << 8) + value[2]


def color_of(number: int) -> Color:
    """The colour of a number."""
    return number >> 16, number >> 8 & 255, number & 255


def class_value_text(member: SegmentationClass) -> str:
    """The values of a class as text, the first few of many."""
    more = ", ..." if len(member.values) > SHOWN_VALUES else ""
    return ", ".join(map(_value_text, member.values[:SHOWN_VALUES])) + more


def _value_text(value: int | Color) -> str:
    return str(value) if isinstance(value, int) else f"[{shown_color(*value)}]"
