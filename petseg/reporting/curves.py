"""The numbers behind a run's curves, kept in memory while it trains: as many as a drawing can show, and no more."""

import functools
from array import array
from collections.abc import Iterator
from pathlib import Path

from petseg.classes import Classes
from petseg.reporting import pictures, summaries

MOST_POINTS = 1000  # of a curve, more than its chart has pixels


class Curves:
    """Collects the numbers that `pictures.training_curves` draws.

    Args:
      classes: the classes.
    """

    def __init__(self, classes: Classes):
        # Asked for each row of a file, which may have millions.
        self._is_drawn = functools.cache(lambda run, tag: pictures.is_in_curves(run, tag, classes))
        self._curves: dict[tuple[str, str], _Curve] = {}

    def read(self, metrics_file: Path) -> None:
        """Adds what an earlier process has logged."""
        for row in summaries.read_csv(metrics_file, self._is_drawn):
            self.add(*row)

    def add(self, step: int, run: str, tag: str, value: float) -> None:
        """Adds a number; steps of one curve must rise. One that no chart shows is left out."""
        if self._is_drawn(run, tag):
            self._curves.setdefault((run, tag), _Curve()).add(step, value)

    def rows(self) -> Iterator[tuple[int, str, str, float]]:
        """What is to be drawn: (step, run, tag, value), in rising steps for each curve."""
        for (run, tag), curve in self._curves.items():
            for step, value in curve.points():
                yield step, run, tag, value


class _Curve:
    """Points of one curve, evenly thinned out: every `_stride`-th of all, and the last one."""

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
