"""What a data set holds, counted pair by pair: sizes, modes, classes; what is wrong, and what looks odd."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from petseg.classes import IGNORED, UNKNOWN, Classes
from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.mask_values import ZERO_AND_255
from petseg.data.folders.pair_files import DecodedPair

LARGEST_SUGGESTED = 512  # pixels of the longer side
DIVISOR = 32  # of the network's input
USUAL_SHAPE = 4 / 3  # of the widest to the narrowest pictures, beyond which one shape does not suit all
SHOWN_NAMES = 5


@dataclasses.dataclass
class SplitCounts:
    """What a split holds.

    Attributes:
      pairs: number of pairs without a fault.
      pixels: number of pixels by class id, int64 [256].
      pictures: number of masks in which a class id occurs, int64 [256].
      pixels_around: number of pixels in any class of the masks in which a class id occurs, int64 [256].
      uniform: names of pictures that are in one class everywhere, by its id; IGNORED for those in none.
    """

    pairs: int = 0
    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    pictures: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    pixels_around: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    uniform: dict[int, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, name: str, ids: np.ndarray) -> None:
        """Counts a mask of class ids, uint8 [H, W]."""
        counts = np.bincount(ids.ravel(), minlength=256)
        self.pairs += 1
        self.pixels += counts
        self.pictures += counts > 0
        if counts.max() == ids.size:
            self.uniform.setdefault(int(ids[0, 0]), []).append(name)
        self.pixels_around += np.where(counts > 0, counts[:UNKNOWN].sum(), 0)


class Inspection:
    """Counts pairs.

    Attributes:
      splits: counts by the name of the split.
      faults: all faults, in the order in which they were found.
      modes: number of pairs by how picture and mask are stored.
      sizes: number of pictures by height and width.

    Args:
      classes: the classes.
      faults: what is known to be wrong before any file is opened.
    """

    def __init__(self, classes: Classes, faults: Iterable[Fault] = ()):
        self.classes = classes
        self.splits: dict[str, SplitCounts] = {}
        self.faults: list[Fault] = list(faults)
        self.modes: collections.Counter[tuple[str, str]] = collections.Counter()
        self.sizes: collections.Counter[tuple[int, int]] = collections.Counter()
        self._places: dict[bytes, list[tuple[str, str]]] = {}

    def add(self, split: str, pair: DecodedPair) -> None:
        """Counts a pair of a split."""
        counts = self.splits.setdefault(split, SplitCounts())
        self.faults += [dataclasses.replace(fault, split=split) for fault in pair.faults]
        self.modes[pair.modes] += 1
        if pair.size:
            self.sizes[pair.size] += 1
            self._places.setdefault(pair.digest, []).append((split, pair.name))
        if not pair.faults and pair.ids is not None:
            counts.add(pair.name, pair.ids)

    def finish(self) -> None:
        """Adds the faults that only all masks together show."""
        if not any(fault.kind in (Kind.VALUES, Kind.INEXACT) for fault in self.faults):
            self.faults += missing_class_faults(self.pixels, self.classes)

    @property
    def pixels(self) -> np.ndarray:
        """Number of pixels by class id, int64 [256]."""
        return sum((counts.pixels for counts in self.splits.values()), np.zeros(256, np.int64))

    @property
    def median_size(self) -> tuple[int, int]:
        """Median height and width."""
        heights, widths = self._sides()
        return int(np.median(heights)), int(np.median(widths))

    def extreme_sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The sizes with the fewest and the most pixels."""
        return min(self.sizes, key=math.prod), max(self.sizes, key=math.prod)

    def notes(self) -> list[str]:
        """What may be meant, but mostly is not."""
        found = []
        for split, counts in self.splits.items():
            lacking = [name for i, name in enumerate(self.classes.names) if not counts.pixels[i]]
            if lacking and counts.pairs:
                found.append(f"split {split} has no pixel of {_few(lacking)}")
            for place, names in sorted(counts.uniform.items()):
                where = "no class" if place == IGNORED else self.classes.names[place]
                found.append(f"split {split}: {len(names)} masks are in {where} everywhere: {_few(names)}")
        shared = [places for places in self._places.values() if len({split for split, _ in places}) > 1]
        if shared:
            pairs = [" = ".join(f"{split}: {name}" for split, name in places[:3]) for places in shared]
            found.append(f"{len(shared)} pictures stand in two splits or more, byte by byte: {_few(pairs)}")
        return found

    def suggested_size(self) -> str:
        """Flags for the network's input."""
        heights, widths = self._sides()
        shapes = np.quantile(widths / heights, (0.1, 0.9))
        height, width = float(np.median(heights)), float(np.median(widths))
        scale = min(1.0, LARGEST_SUGGESTED / max(height, width))
        if shapes[1] / shapes[0] > USUAL_SHAPE:
            side = _divisible(math.sqrt(height * width) * scale)
            return f"--image_size={side} --resize=letterbox"
        height, width = _divisible(height * scale), _divisible(width * scale)
        return f"--image_size={height}" if height == width else f"--image_size={height},{width}"

    def suggested_weights(self, split: str) -> str:
        """A flag for the weights of the classes: those of `median_frequency`, in numbers; empty if a class lacks."""
        counts = self.splits[split]
        pixels, around = (table[: len(self.classes)] for table in (counts.pixels, counts.pixels_around))
        if not pixels.all():
            return ""
        inverse = around / pixels
        return "--class_weights=" + ",".join(f"{weight:.3g}" for weight in inverse / inverse.sum())

    def _sides(self) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.array(list(self.sizes.elements()))
        return sizes[:, 0], sizes[:, 1]


def missing_class_faults(counts: np.ndarray, classes: Classes) -> list[Fault]:
    """A fault if all pixels that are in a class are in one, as in masks with 0 and 255 where 255 is ignored.

    Args:
      counts: number of pixels by class id, int64 [256].
      classes: the classes.
    """
    present = np.flatnonzero(counts[: len(classes)])
    if len(present) > 1 or not counts.any():
        return []
    what = f"hold class {classes.names[present[0]]} alone" if len(present) else "hold no class"
    if counts[IGNORED]:
        share = counts[IGNORED] / counts.sum()
        what += f", and, in {share:.1%} of their pixels, a value in no class"
    what += "; must hold two classes or more"
    if counts[IGNORED] and not classes.colored and IGNORED in classes.ignored:
        what += f"; for 0 and 255, the classes file must be {ZERO_AND_255}"
    return [Fault(Kind.CLASSES, "the masks", what)]


def _divisible(side: float) -> int:
    return max(DIVISOR, round(side / DIVISOR - 0.01) * DIVISOR)  # in doubt, the smaller


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
