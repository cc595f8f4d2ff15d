"""Checks the weight maps of a data set as a whole: bit depths and ranges."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from petseg.config.data_config import WEIGHT_SCALES
from petseg.data.folders.faults import Fault, Kind
from petseg.data.folders.pair_files import DecodedPair
from petseg.data.images import DTYPE_TEXT

SMALL = 0.02  # a largest weight below it suggests another scale
LARGE = (255, 65535)  # of floats or 32-bit integers, made of 8 or 16 bits


@dataclasses.dataclass
class _Facts:
    first: str  # name of the first map
    dtype: str
    maps: int = 0
    pixels: int = 0
    total: float = 0.0  # of all numbers
    largest: float = 0.0


class WeightSurvey:
    """Collects facts of weight maps, split by split."""

    def __init__(self) -> None:
        self._splits = dict[str, _Facts]()

    def add(self, split: str, pair: DecodedPair) -> list[Fault]:
        """Adds the weight map of a pair, if it has one; a map of another depth than the split's first is a fault."""
        if pair.weight is None:
            return []
        numbers = pair.weight.pixels
        facts = self._splits.setdefault(split, _Facts(pair.weight_name, numbers.dtype.name))
        if numbers.dtype.name != facts.dtype:
            found, usual = DTYPE_TEXT[numbers.dtype.name], DTYPE_TEXT[facts.dtype]
            what = f"holds {found}, {facts.first} {usual}; weight maps of a split must be of one depth"
            return [Fault(Kind.WEIGHTS, pair.weight_name, what, split)]
        facts.maps, facts.pixels, facts.total = facts.maps + 1, facts.pixels + numbers.size, facts.total + numbers.sum()
        facts.largest = max(facts.largest, float(numbers.max()))
        return []

    def rows(self) -> dict[str, tuple[str, float]]:
        """Dtype and largest number of the maps, by split."""
        return {split: (facts.dtype, facts.largest) for split, facts in self._splits.items()}

    def lines(self, scale: float) -> Iterator[str]:
        """The facts as text; `scale` is --weight_scale."""
        for split, facts in self._splits.items():
            unit = scale or WEIGHT_SCALES[facts.dtype]
            mean, largest = facts.total / facts.pixels / unit, facts.largest / unit
            what = f"{facts.maps} of {DTYPE_TEXT[facts.dtype]}, {unit:g} counts as 1"
            yield f"weight maps of {split}: {what}; mean {mean:.3g}, largest {largest:.3g}"


def notes(rows: Mapping[str, Sequence[Any]], scale: float) -> list[str]:
    """Possible mistakes in the scale, from `WeightSurvey.rows`."""
    units = {split: (largest, scale or WEIGHT_SCALES[dtype]) for split, (dtype, largest) in rows.items()}
    return [
        f"split {split}: the largest number in weight maps is {largest:g}, and {unit:g} counts as 1; "
        f"--weight_scale={largest:g} would make it 1"
        for split, (largest, unit) in units.items()
        if largest < SMALL * unit or (unit == 1 and largest in LARGE)
    ]
