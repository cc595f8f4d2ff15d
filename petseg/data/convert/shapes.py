"""Shapes of annotated objects, and their pixels.

Points are x, y in pixels from the top left corner of the image, so the centre of the first pixel is .5, .5. Polygons
are drawn by COCO's rasteriser (pycocotools): a pixel belongs to one or not, by its centre.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from petseg.errors import DataError

FARTHEST = 10  # sides of the image beyond which a point is a mistake; the rasteriser's memory grows with distances


@dataclasses.dataclass(frozen=True)
class Region:
    """The pixels of an object: their number, and a function that returns them as bool [H, W]."""

    area: int
    pixels: Callable[[], np.ndarray]


class Shape(abc.ABC):
    """The shape of an object."""

    @abc.abstractmethod
    def drawn(self, height: int, width: int) -> Region:
        """The pixels of the shape in an image of this size.

        Raises DataError if the shape does not fit the image; the text follows the object's name.
        """


@dataclasses.dataclass(frozen=True)
class Polygons(Shape):
    """An object of one or more polygons; crossings inside one polygon follow the even-odd rule, parts are united."""

    parts: Sequence[np.ndarray]  # points of each polygon, float64 [N, 2], N >= 3
    normalized: bool = False  # whether x and y are fractions of width and height

    def drawn(self, height: int, width: int) -> Region:
        from pycocotools import mask as coco_masks

        size = np.array([width, height], np.float64)
        parts = [part * size if self.normalized else part for part in self.parts]
        for point in np.concatenate(parts):
            if not (np.abs(point) <= FARTHEST * size.max()).all():  # False for NaN too
                raise DataError(f"has a point at {point[0]:g}, {point[1]:g}; the image is {width} x {height}")
        encoded = coco_masks.frPyObjects([part.ravel().tolist() for part in parts], height, width)
        return _encoded_region(coco_masks.merge(encoded))


@dataclasses.dataclass(frozen=True)
class RunLength(Shape):
    """An object in COCO's run-length encoding: column by column, background first."""

    size: tuple[int, int]  # height and width
    counts: Sequence[int] | str  # lengths of the runs, or their compressed text

    def drawn(self, height: int, width: int) -> Region:
        from pycocotools import mask as coco_masks

        if self.size != (height, width):
            raise DataError(f"has a mask of {self.size[0]} x {self.size[1]}, in an image of {height} x {width}")
        counts = _decompressed(self.counts) if isinstance(self.counts, str) else list(self.counts)
        valid = all(type(count) is int and count >= 0 for count in counts)
        if not valid or sum(counts) != height * width:  # pycocotools would read beyond its memory
            raise DataError(f"has a run-length encoding that is not of {height} x {width} pixels")
        return _encoded_region(coco_masks.frPyObjects({"size": [height, width], "counts": counts}, height, width))


@dataclasses.dataclass(frozen=True)
class Circle(Shape):
    """A circle: centre and radius."""

    center: tuple[float, float]
    radius: float

    def drawn(self, height: int, width: int) -> Region:
        y, x = np.ogrid[:height, :width]
        return pixel_region(np.hypot(x + 0.5 - self.center[0], y + 0.5 - self.center[1]) <= self.radius)


@dataclasses.dataclass(frozen=True)
class Patch(Shape):
    """Pixels, bool [h, w], whose first is at row `top` and column `left`."""

    top: int
    left: int
    pixels: np.ndarray

    def drawn(self, height: int, width: int) -> Region:
        whole = np.zeros((height, width), bool)
        top, left = max(self.top, 0), max(self.left, 0)
        part = self.pixels[top - self.top :, left - self.left :][: max(height - top, 0), : max(width - left, 0)]
        whole[top : top + part.shape[0], left : left + part.shape[1]] = part
        return pixel_region(whole)


def rectangle(corners: np.ndarray) -> Polygons:
    """The upright rectangle around points, float64 [N, 2]."""
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    return Polygons([np.array([[left, top], [right, top], [right, bottom], [left, bottom]])])


def pixel_region(pixels: np.ndarray) -> Region:
    """The region of bool [H, W]."""
    return Region(int(pixels.sum()), lambda: pixels)


def _encoded_region(encoded: Any) -> Region:
    """The region of a mask in pycocotools' encoding, which takes little memory until it is decoded."""
    from pycocotools import mask as coco_masks

    return Region(int(coco_masks.area(encoded)), lambda: coco_masks.decode(encoded).astype(bool))


def _decompressed(text: str) -> list[int]:
    """The runs of a compressed text: five bits a character, lowest first; from the fourth on, differences.

    Raises DataError if the text is cut off, or holds other characters.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text.encode():
        bits = character - 48
        if not 0 <= bits < 64:
            raise DataError(f"has a compressed run-length encoding with the character {chr(character)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # the number continues
            continue
        value -= (1 << shift) if bits & 16 else 0  # negative
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise DataError("has a compressed run-length encoding that is cut off")
    return counts
