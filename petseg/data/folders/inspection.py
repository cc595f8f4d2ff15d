"""Statistics of a data set, pair by pair: sizes, modes, pixels by class, faults and possible mistakes."""

import collections
import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from petseg.classes import IGNORED, UNKNOWN, Classes
from petseg.config import DataConfig
from petseg.data.folders import weight_map_survey
from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.pair_files import DecodedPair
from petseg.data.folders.weight_map_survey import WeightSurvey
from petseg.data.folds import group_of
from petseg.data.images import BandCounts, joined
from petseg.data.mask_survey import MaskSurvey
from petseg.errors import DataError

LARGEST_SUGGESTED = 512  # pixels of the longer side
DIVISOR = 32  # sides of the network's input are multiples of it
USUAL_SHAPE = 4 / 3  # largest ratio of aspect ratios for which stretching is suggested
SHOWN_NAMES = 5


@dataclasses.dataclass
class SplitCounts:
    """Statistics of a split."""

    pairs: int = 0  # number of pairs without faults
    # number of pixels by class id, int64 [256]
    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    # number of masks in which a class id occurs, int64 [256]
    pictures: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    # number of labelled pixels of the masks in which a class id occurs, int64 [256]
    pixels_around: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    # names of images whose mask holds a single class id, by this id
    uniform: dict[int, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, name: str, ids: np.ndarray) -> None:
        """Adds a mask of class ids, uint8 [H, W]."""
        counts = np.bincount(ids.ravel(), minlength=256)
        self.pairs += 1
        self.pixels += counts
        self.pictures += counts > 0
        if counts.max() == ids.size:
            self.uniform.setdefault(int(ids[0, 0]), []).append(name)
        self.pixels_around += np.where(counts > 0, counts[:UNKNOWN].sum(), 0)


class Inspection:
    """Collects statistics and faults of pairs.

    Attributes:
      modes: number of pairs by Pillow's modes of image and mask.
      sizes: number of images by height and width.
      groups: number of images by split, of each group (--group_files); empty without that flag.

    Args:
      classes: the classes.
      needed: the splits whose masks and images are judged together.
      data: flags of the data.
    """

    def __init__(
        self,
        classes: Classes,
        needed: Collection[str] = (),
        faults: Iterable[Fault] = (),
        data: DataConfig | None = None,
    ):
        self.classes, self._needed, self._survey = classes, needed, MaskSurvey(classes)
        self._data = data or DataConfig()
        self.bands: dict[str, BandCounts] = {}
        self.weights = WeightSurvey()
        self.splits: dict[str, SplitCounts] = {}
        self.faults: list[Fault] = list(faults)
        self.modes: collections.Counter[tuple[str, str]] = collections.Counter()
        self.sizes: collections.Counter[tuple[int, int]] = collections.Counter()
        self._places: dict[bytes, list[tuple[str, str]]] = {}
        self.groups: dict[str, collections.Counter[str]] = {}

    def add(self, split: str, pair: DecodedPair) -> None:
        """Adds a pair of a split."""
        counts = self.splits.setdefault(split, SplitCounts())
        self.faults += [dataclasses.replace(fault, split=split) for fault in pair.faults]
        self.faults += self.weights.add(split, pair)
        self.modes[pair.modes] += 1
        if self._data.group_files:
            self.groups.setdefault(group_of(pair.name, self._data), collections.Counter())[split] += 1
        if pair.size:
            self.sizes[pair.size] += 1
            self._places.setdefault(pair.digest, []).append((split, pair.name))
        if pair.picture and pair.bands:
            of_split = self.bands.setdefault(split, BandCounts())
            of_split.add(pair.bands, pair.name, varies=pair.picture.alpha_varies)
        if not pair.faults and pair.ids is not None:
            counts.add(pair.name, pair.ids)
        if pair.facts and split in self._needed:
            self._survey.add(pair.mask_name, pair.facts, either_way=pair.either_way)

    def finish(self) -> None:
        """Adds the faults of all masks together, after the last pair."""
        unread = any(fault.kind in (Kind.VALUES, Kind.INEXACT) for fault in self.faults)
        self.faults += [fault for fault in self._survey.faults() if fault.kind is not Kind.CLASSES or not unread]
        try:
            self._all_bands.resolve(self._data.channels, self._data.image_dtype)
        except DataError as error:
            where, _, what = str(error).partition(": ")
            self.faults.append(Fault(Kind.IMAGES, where, what))

    @property
    def _all_bands(self) -> BandCounts:
        """The bands of the images of the splits that training needs."""
        return joined(self.bands, self._data.named_splits)

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
        """Possible mistakes."""
        found = []
        for split, counts in self.splits.items():
            lacking = [name for i, name in enumerate(self.classes.names) if not counts.pixels[i]]
            if lacking and counts.pairs:
                found.append(f"split {split} has no pixel of {_few(lacking)}")
            for place, names in sorted(counts.uniform.items()):
                where = "no class" if place == IGNORED else self.classes.names[place]
                found.append(f"split {split}: {len(names)} masks are entirely in {where}: {_few(names)}")
        if note := self._all_bands.alpha_note(self._data.channels):
            found.append(note)
        shared = [places for places in self._places.values() if len({split for split, _ in places}) > 1]
        if shared:
            pairs = [" = ".join(f"{split}: {name}" for split, name in places[:3]) for places in shared]
            found.append(f"{len(shared)} images are in two splits or more, byte by byte: {_few(pairs)}")
        if several := [group for group, splits in self.groups.items() if len(splits) > 1]:
            found.append(f"{len(several)} groups (--group_files) are in two splits or more: {_few(several)}")
        return [*found, *self._survey.notes(), *weight_map_survey.notes(self.weights.rows(), self._data.weight_scale)]

    def suggested_size(self) -> str:
        """Flags for the size of the network's input."""
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
        """A flag with the class weights of `median_frequency`; empty if a class has no pixels."""
        counts = self.splits[split]
        pixels, around = (table[: len(self.classes)] for table in (counts.pixels, counts.pixels_around))
        if not pixels.all():
            return ""
        inverse = around / pixels
        return "--class_weights=" + ",".join(f"{weight:.3g}" for weight in inverse / inverse.sum())

    def _sides(self) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.array(list(self.sizes.elements()))
        return sizes[:, 0], sizes[:, 1]


def _divisible(side: float) -> int:
    return max(DIVISOR, round(side / DIVISOR - 0.01) * DIVISOR)  # rounds ties down


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
