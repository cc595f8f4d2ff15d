"""Points of a run's training curves in bounded memory."""

import functools
from array import array
from collections.abc import Iterator
from pathlib import Path

from petseg.classes import Classes
from petseg.reporting import pictures, summaries

MOST_POINTS = 1000  # per curve, more than its chart has pixels


class Curves:
    """Collects the numbers that `pictures.training_curves` draws."""

    def __init__(self, classes: Classes):
        # Cached because it is called for each row of a file, which may have millions.
        self._is_drawn = functools.cache(lambda run, tag: pictures.is_in_curves(run, tag, classes))
        self._curves: dict[tuple[str, str], _Curve] = {}

    def read(self, metrics_file: Path) -> None:
        """Adds the numbers that an earlier process logged."""
        for row in summaries.read_csv(metrics_file, self._is_drawn):
            self.add(*row)

    def add(self, step: int, run: str, tag: str, value: float) -> None:
        """Adds a number, unless no chart shows it; steps of a curve must increase."""
        if self._is_drawn(run, tag):
            self._curves.setdefault((run, tag), _Curve()).add(step, value)

    def rows(self) -> Iterator[tuple[int, str, str, float]]:
        """Points to draw: (step, run, tag, value), in increasing steps for each curve."""
        for (run, tag), curve in self._curves.items():
            for step, value in curve.points():
                yield step, run, tag, value


class _Curve:
    """Points of one curve, thinned out evenly: every `_stride`-th point and the last one."""

    def __init__(self) -> None:
        self._steps, self._values = array("q"), array("d")
        self._stride, self._count = 1, 0
        self._last: tuple[int, float] | None = None

    def add(self, step: int, value: float) -> None:
        self._last = (step, value)
        if self._count % self._stride == 0:
            self._steps.append(step)
            self._values.append(value)
        self._count += 1
        if len(self._steps) >= MOST_POINTS:
            self._steps, self._values, self._stride = self._steps[::2], self._values[::2], 2 * self._stride

    def points(self) -> Iterator[tuple[int, float]]:
        yield from zip(self._steps, self._values, strict=True)
        if self._last is not None and self._steps[-1] != self._last[0]:
            yield self._last
