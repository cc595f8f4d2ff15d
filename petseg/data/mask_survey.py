"""Checks the meaning of mask values over all masks of a data set. Imports no TensorFlow.

Only many masks together show that 255 is a class after all, that palettes differ, or that values come from
interpolation.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from petseg.classes import IGNORED, UNKNOWN, Classes
from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.mask_values import ZERO_AND_255, MaskCoding
from petseg.data.mask_files import LARGEST, RESAMPLED, MaskValues, uniform_pixels

MOST_VALUES = 4096  # of one mask that are surveyed; instance labels may have more
SURVEYED_SIDE = 256  # pixels; regions are measured on a grid of at most this many
LINE = 8  # a region with more than this many times the area of a square inside it is a line
MANY = 16  # values of one mask
RARE = 0.05  # largest fraction of the pixels of a value that interpolation makes
PARTS = 1.5  # most places of an object, on average
SEGMENTS = 3  # least number of masks, and of colours of each on average, in which colours that never recur are segments
CODED = 1000  # least number of an object's class and its own, such as Cityscapes' 24001
SHOWN_NAMES = 2
NO_CLASS = ("void", "ignore", "ignored", "unlabeled", "unlabelled")  # names of what is rarely meant as a class
NEIGHBOURS = np.ones((3, 3))  # of a pixel in a region: also the diagonal ones


@dataclasses.dataclass(frozen=True)
class MaskFacts:
    """Facts of one mask."""

    values: np.ndarray  # its values or colours, int [N], ascending
    pixels: np.ndarray  # number of pixels of each, int64 [N]
    uniform: np.ndarray  # how many of these are in a block of 2 x 2 equal pixels, int64 [N]
    between: np.ndarray  # how many are between a smaller and a larger value, int64 [N]; counted where values are many
    compact: int = 0  # number of pixels of value 255 in regions that are no thin lines
    colored: bool = False  # whether the values are colours
    # colours of the values in the file's palette, uint8 [N, 3]; None without a palette
    palette: np.ndarray | None = None
    single: bool = False  # whether the file has numbers and no colours at all
    transparent: bool = False  # whether its pixels differ in opacity
    objects: int | None = 0  # the number of its objects if its values may number them; None if they do not

    @classmethod
    def of(cls, mask: MaskValues) -> "MaskFacts":
        """Collects the facts of a mask."""
        numbers, places = mask.numbers, mask.numbers
        if mask.colored:
            values, places = np.unique(numbers, return_inverse=True)
            places = places.reshape(numbers.shape)
        else:
            values = np.flatnonzero(np.bincount(numbers.ravel()))
        count = len(values) if mask.colored else int(values[-1]) + 1
        kept = slice(MOST_VALUES) if mask.colored else values[:MOST_VALUES]

        def counted(where: np.ndarray) -> np.ndarray:
            return np.bincount(places[where], minlength=count)[kept]

        pixels, uniform = np.bincount(places.ravel(), minlength=count)[kept], counted(uniform_pixels(places))
        many = len(values) > MANY or (uniform < pixels / 2).sum() > 2
        between = counted(_is_between(numbers)) if many and not mask.colored else np.zeros_like(pixels)
        values = values[:MOST_VALUES]
        void = not mask.colored and IGNORED in values and len(values) > 1
        compact = _count_compact(numbers == IGNORED) if void else 0
        palette = None if mask.palette is None else mask.palette[np.minimum(values, 255)]
        if palette is not None and values[-1] > 0 and (palette == values[:, None]).all():
            palette = None  # each number has its own shade, as in a palette that was made of grey: no colours
        # Panoptic masks count in the red channel first.
        objects = _count_objects(numbers, values, 0x10000 if mask.colored else 1)
        return cls(
            values, pixels, uniform, between, compact, mask.colored, palette, mask.single, mask.transparent, objects
        )


class MaskSurvey:
    """Collects the facts of masks and judges them together."""

    def __init__(self, classes: Classes | None):
        self._classes = classes
        # pixels, uniform, between, and number of masks, by value
        self._sums: dict[bool, dict[int, np.ndarray]] = {False: {}, True: {}}
        self._colors: dict[int, tuple[bytes, str]] = {}  # of palette indices, and the first mask that has them
        self._differing: tuple[int, str, str] | None = None
        self._void_pixels = self._void_compact = 0
        self._void: list[str] = []  # masks with compact regions of 255
        self._only_void: list[str] = []  # masks of 0 and 255 alone
        self._without_void: list[str] = []  # masks of other values than 0, without 255
        self._beside_void = False  # whether 255 occurs in one mask with values other than 0
        self._either_way: list[str] = []
        self._transparent: list[str] = []
        self._grey: list[str] = []  # masks of numbers other than 0 and 255 in files without colours
        self._numbers: set[int] = set()  # in such files
        self._plain: dict[int, str] = {}  # values other than 0 in files without palettes or colours, and the first mask
        self._shades: dict[str, set[int]] = {}  # of the indices of masks whose palettes are shades of grey
        self._colored_masks = 0
        self._objects: set[int | None] = set()  # numbers of objects that the values of a mask may count

    def add(self, name: str, facts: MaskFacts, *, either_way: bool = False) -> None:
        """Adds a mask; `either_way`: its image is turned by EXIF, and it fits the image as stored too."""
        if either_way:
            self._either_way.append(name)
        self._objects.add(facts.objects)
        sums = self._sums[facts.colored]
        for value, *counts in zip(facts.values.tolist(), facts.pixels, facts.uniform, facts.between, strict=True):
            sums[value] = sums.get(value, 0) + np.array([*counts, 1])
        if facts.transparent:
            self._transparent.append(name)
        if facts.palette is not None:
            for value, color in zip(facts.values.tolist(), facts.palette, strict=True):
                first, where = self._colors.setdefault(value, (color.tobytes(), name))
                if first != color.tobytes():
                    self._differing = self._differing or (value, where, name)
            if (facts.palette == facts.palette[:, :1]).all() and (facts.palette[:, 0] != facts.values).any():
                self._shades[name] = set(facts.palette[:, 0].tolist())
        elif not facts.colored and facts.values.tolist() != [IGNORED]:  # a mask that is wholly ignored fits all others
            self._plain = {value: name for value in facts.values.tolist() if value} | self._plain
        self._colored_masks += facts.colored
        if not facts.colored:
            self._add_void(name, facts)

    def _add_void(self, name: str, facts: MaskFacts) -> None:
        values = set(facts.values.tolist())
        others = values - {0, IGNORED}
        if facts.single and others:
            self._grey.append(name)
            self._numbers |= values
        if IGNORED not in values:
            if others:
                self._without_void.append(name)
            return
        self._beside_void |= bool(others)
        if values == {0, IGNORED}:
            self._only_void.append(name)
        if len(values) > 1:
            self._void_pixels += int(facts.pixels[facts.values == IGNORED].sum())
            self._void_compact += facts.compact
            if facts.compact:
                self._void.append(name)

    def faults(self) -> list[Fault]:
        """What makes the masks unusable."""
        found = [Fault(Kind.RESAMPLED, "the masks", self._resampled())] if self._resampled() else []
        if self._classes is None:
            unclear = self._unclear_without_classes()
            return found or ([Fault(Kind.CLASSES, "the masks", unclear)] if unclear else [])
        if self._differing and not self._classes.colored:
            found.append(Fault(Kind.PALETTES, self._differing[2], self._palettes()))
        elif exchanged := self._exchanged(self._classes) or self._stored_as_shades(self._classes):
            found.append(Fault(Kind.PALETTES, "the masks", exchanged))
        return found + self._missing_classes(self._classes)

    def _unclear_without_classes(self) -> str:
        """Why values cannot be classes, one each; empty if they can."""
        if reason := self._meaning_of_void():
            return f'{reason}; a classes file must say what it is: a class with "value": 255, or "ignored": [255]'
        if LARGEST in self._sums[False] and len(self._sums[False]) > 2:
            return f'hold {LARGEST}, the largest value; a classes file must say what it is: a class, or "ignored"'
        if reason := self._number_objects():
            return f'{reason}; a classes file must say which values are one class: "value": [1, 2, 3]'
        if self._number_segments():
            return (
                "hold colours that hardly ever recur in another mask, as in panoptic masks, whose colours number "
                'segments (red + 256 green + 65536 blue is the id in "segments_info"); must hold the class of each '
                "segment, or a classes file must give the colours of each class"
            )
        if self.holds_colors and self._grey and (self._differing or self._sums[True]):
            return (
                f"hold numbers in {_few(self._grey)} and colours in others, whose numbers mean something else in every "
                "file; must be numbers or colours throughout"
            )
        if shaded := [name for name, shades in self._shades.items() if shades <= self._numbers]:
            return (
                f"hold palettes of grey ({_few(shaded)}), whose shades, not indices, are the values of masks without "
                f"palettes ({_few(self._grey)}); must be saved as grey: mask.convert('L')"
            )
        return self._unlike_palettes()

    def _unlike_palettes(self) -> str:
        """Why values in files without palettes are no indices of the palettes in others; empty if they seem to be."""
        indices = {value: name for value, (_, name) in self._colors.items() if value not in (0, IGNORED)}
        plain = {value: name for value, name in self._plain.items() if value != IGNORED} or self._plain
        if self.holds_colors or not indices or not plain or plain.keys() & indices.keys():
            return ""
        index, value = min(indices), min(plain)
        return (
            f"hold indices of palettes, such as {index} in {indices[index]}, and values without a palette, such as "
            f"{value} in {plain[value]}, none of which is one of these indices; must be saved alike, or a classes file "
            'must say which values are one class: "value": [1, 255]'
        )

    def notes(self) -> list[str]:
        """What may be a mistake."""
        classes = self._classes
        found = []
        if self._either_way:
            found.append(
                f"{len(self._either_way)} masks fit their images both as stored and as turned by EXIF; they are taken "
                f"to be drawn on the turned ones: {_few(self._either_way)}"
            )
        if self._transparent:
            count = len(self._transparent)
            found.append(f"{count} masks have pixels of different opacity, which is ignored: {_few(self._transparent)}")
        if classes and not classes.colored and IGNORED in classes.ignored and (reason := self._meaning_of_void()):
            found.append(f'the masks {reason}; if it is a class, the classes file must give it "value": 255')
        one_each = classes is not None and not any(each.more_values for each in classes.members)
        if one_each and (reason := self._count_in_places()):
            found.append(f"the masks {reason}; if so, they must be replaced by those of classes")
        for number, name in enumerate(classes.names if classes else ()):
            if name.lower() in NO_CLASS and self._class_pixels()[number]:
                found.append(f'{name} is a class that is trained and scored; "ignored" leaves its pixels out')
        return found

    @property
    def has_classes(self) -> bool:
        """Whether at least two of the classes occur."""
        return len(np.flatnonzero(self._class_pixels()[:UNKNOWN])) > 1

    @property
    def ignores_pixels(self) -> bool:
        """Whether pixels in no class occur."""
        return self._class_pixels()[IGNORED] > 0

    def _class_pixels(self) -> np.ndarray:
        """Number of pixels by class id, int64 [256]."""
        assert self._classes is not None
        sums = self._sums[self._classes.colored]
        ids = MaskCoding(self._classes).ids(np.array(list(sums), np.int32))
        return np.bincount(ids, [pixels for pixels, *_ in sums.values()], minlength=256).astype(np.int64)

    @property
    def holds_colors(self) -> bool:
        """Whether colours, not numbers, say what a pixel is: some masks hold colours, or palettes differ."""
        return bool(self._sums[True]) or self._differing is not None

    def _meaning_of_void(self) -> str:
        """Why 255 may be a class in masks where it is ignored; empty if it seems to be no class."""
        reasons = []
        values = sorted(self._sums[False])
        gaps = np.diff(values)
        if IGNORED in values and len(values) > 2 and gaps.min() >= 8 and gaps.max() <= 2 * gaps.min() + 2:
            shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
            reasons.append(f"their values {shown} are shades of grey at even distances")
        if self._only_void and self._without_void and not self._beside_void:
            masks = f"{len(self._only_void)} masks hold 0 and 255 alone ({_few(self._only_void)})"
            reasons.append(f"{masks}, {len(self._without_void)} others hold other values ({_few(self._without_void)})")
        if self._void_compact > self._void_pixels / 2:
            reasons.append(f"in {len(self._void)} masks 255 covers compact regions, not lines ({_few(self._void)})")
        return f"hold 255, which means no class by convention, but {' and '.join(reasons)}" if reasons else ""

    def _number_objects(self) -> str:
        """Why values seem to tell objects of a class apart, as in instance segmentation; empty if they do not."""
        coded = sorted(value for value in self._sums[False] if CODED <= value < LARGEST)
        if len(coded) > 1:
            return f"hold {coded[0]}, {coded[1]}, ..., as instance ids, which number objects, not classes"
        return self._count_in_places()

    def _count_in_places(self) -> str:
        """Why values seem to count places of a mask; empty if they do not."""
        counts = {count for count in self._objects if count}
        if None not in self._objects and len(counts) >= 3:
            what = f"hold 1 to {max(counts)}, each in one place of a mask"
            return f"{what}, as instance ids, which number objects, not classes"
        return ""

    def _number_segments(self) -> bool:
        """Whether colours other than black hardly ever occur in two masks, though there are several in each."""
        masks = [int(counts[-1]) for color, counts in self._sums[True].items() if color]
        colored = self._colored_masks
        return colored >= SEGMENTS and sum(masks) >= SEGMENTS * colored and len(masks) > 0.9 * sum(masks)

    def _exchanged(self, classes: Classes) -> str:
        """Why palettes give numbers the colours of other classes; empty if not all of them are colours of classes."""
        members = {bytes(each.color): each for each in classes.members}
        shown = [(value, members.get(color), name) for value, (color, name) in self._colors.items() if value != IGNORED]
        others = [(value, each, name) for value, each, name in shown if each and value not in each.values]
        if len(others) < 2 or not all(each for _, each, _ in shown):
            return ""
        value, other, name = others[0]
        return (
            f"have palettes that give value {value} the colour of {other.name}, which is {other.value} ({name}); must "
            "hold the values of the classes, or the classes have colours as values"
        )

    def _stored_as_shades(self, classes: Classes) -> str:
        """Why shades of palettes, not indices, seem to be the values, as in GIF files made of grey; empty if not."""
        members = {value: each for each in classes.members for value in each.values}
        shades = {value: color[0] for value, (color, _) in self._colors.items() if len(set(color)) == 1}
        others = [value for value, shade in shades.items() if members.get(value) != members.get(shade)]
        if not others or len(shades) < len(self._colors) or not members.keys() >= set(shades.values()):
            return ""
        value, shade, name = others[0], shades[others[0]], self._colors[others[0]][1]
        return (
            f"have palettes of grey whose shades are values of classes too: value {value} has the shade {shade}, which "
            f"is {members[shade].name} ({name}); must have no palette, as mask.convert('L')"
        )

    def _missing_classes(self, classes: Classes) -> list[Fault]:
        """A fault if at most one class occurs, as in masks of 0 and 255 where 255 is ignored."""
        counts = self._class_pixels()
        present = np.flatnonzero(counts[: len(classes)])
        if len(present) > 1 or not counts.any():
            return []
        what = f"hold class {classes.names[present[0]]} alone" if len(present) else "hold no class"
        if counts[IGNORED]:
            what += f", and, in {counts[IGNORED] / counts.sum():.1%} of their pixels, a value in no class"
        what += "; must hold two classes or more"
        if counts[IGNORED] and not classes.colored and IGNORED in classes.ignored:
            what += f"; for 0 and 255, the classes file must be {ZERO_AND_255}"
        return [Fault(Kind.CLASSES, "the masks", what)]

    def _resampled(self) -> str:
        """Why values seem to come from interpolation; empty if they do not."""
        for colored, sums in self._sums.items():
            if not sums:
                continue
            counts = np.array([sums[value] for value in sorted(sums)])
            pixels, uniform, between, _ = counts.T
            scattered = (uniform < pixels / 2) & (pixels < RARE * pixels.sum())
            if not colored:
                scattered &= between >= pixels / 2
            drawn, made = int((uniform >= pixels / 2).sum()), int(scattered.sum())
            # Values of a class are there on purpose: more of them must look like interpolation.
            least = max(3, drawn) if self._classes is None else max(4, 2 * drawn)
            if drawn >= 2 and made >= least:
                return _made_by_interpolation("colours" if colored else "values", made, drawn)
            # Enlarged again by nearest neighbour: blocks of such values, in steps from one frequent value to the next.
            steps = int(((pixels < RARE / 5 * pixels.sum()) & (between >= 0.8 * pixels)).sum())
            if self._classes is None and steps > max(MANY, 2 * (len(counts) - steps)) and len(counts) - steps > 1:
                return _made_by_interpolation("values", steps, len(counts) - steps)
        return ""

    def _palettes(self) -> str:
        assert self._differing
        value, first, _ = self._differing
        return (
            f"its palette gives index {value} another colour than that of {first} does; all must have one palette, or "
            'the classes must have colours as values: "value": [red, green, blue]'
        )


def _made_by_interpolation(what: str, made: int, others: int) -> str:
    few = f"{made} occur in few pixels at edges only, between {others} frequent ones"
    return f"hold {made + others} {what}, of which {few}, {RESAMPLED}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")


def _is_between(numbers: np.ndarray) -> np.ndarray:
    """Whether the values before and after the run of equal pixels around a pixel, in its row or column, are one smaller
    and one larger than its own; bool [H, W]."""

    def in_rows(rows: np.ndarray) -> np.ndarray:
        at = np.arange(rows.shape[1])
        ends = np.pad(rows[:, 1:] != rows[:, :-1], ((0, 0), (1, 1)), constant_values=True)
        first = np.maximum.accumulate(np.where(ends[:, :-1], at, 0), axis=1)
        last = np.minimum.accumulate(np.where(ends[:, 1:], at, at[-1])[:, ::-1], axis=1)[:, ::-1]
        before = np.take_along_axis(rows, np.maximum(first - 1, 0), axis=1)
        after = np.take_along_axis(rows, np.minimum(last + 1, at[-1]), axis=1)
        return (np.minimum(before, after) < rows) & (rows < np.maximum(before, after))

    return in_rows(numbers) | in_rows(numbers.T).T


def _coarse(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Each n-th row and column, at most SURVEYED_SIDE of them, and n."""
    step = -(-max(pixels.shape) // SURVEYED_SIDE)
    return pixels[::step, ::step], step


def _count_objects(numbers: np.ndarray, values: np.ndarray, unit: int) -> int | None:
    """How many objects a mask has if its values are 0 and 1 to N units, most in one place each; otherwise None."""
    objects = [value for value in values.tolist() if value not in (0, IGNORED)]
    if objects != [*range(unit, unit * (len(objects) + 1), unit)]:
        return None
    coarse, _ = _coarse(numbers)
    parts = 0
    for value in objects:
        parts += ndimage.label(coarse == value, NEIGHBOURS)[1]
        if parts > PARTS * len(objects):
            return None
    return len(objects)


def _count_compact(region: np.ndarray) -> int:
    """Pixels of a region, bool [H, W], in parts that are no thin lines: not much larger than a square inside them."""
    region, step = _coarse(region)
    parts, count = ndimage.label(region, NEIGHBOURS)
    if not count:
        return 0
    depths = ndimage.distance_transform_cdt(region, "chessboard")  # 1 at edges
    sides = 2 * np.atleast_1d(ndimage.maximum(depths, parts, np.arange(1, count + 1))) - 1
    areas = np.bincount(parts.ravel())[1:]
    return step**2 * int(areas[(sides >= 3) & (areas <= LINE * sides**2)].sum())
