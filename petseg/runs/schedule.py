"""When a run does what."""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

from petseg.config import ScheduleConfig


@dataclasses.dataclass(frozen=True)
class Clock:
    """When a run does what, in steps.

    Attributes:
      total: length of the run.
      steps_per_loop: steps in one call of the compiled loop, at most.
      summarize_every: interval of training summaries.
      evaluate_every: interval of evaluations.
      save_every: interval of checkpoints.
      histogram_every: interval of histograms of weights and gradients.
      profile: the first step to profile, and the first after it; none if they are equal.
    """

    total: int
    steps_per_loop: int
    summarize_every: int
    evaluate_every: int
    save_every: int
    histogram_every: int
    profile: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, schedule: ScheduleConfig, steps_per_epoch: int) -> "Clock":
        return cls(
            total=schedule.train_steps or schedule.epochs * steps_per_epoch,
            steps_per_loop=schedule.steps_per_loop,
            summarize_every=schedule.summary_every,
            evaluate_every=schedule.eval_every or steps_per_epoch,
            save_every=schedule.checkpoint_every or steps_per_epoch,
            histogram_every=schedule.histogram_every or steps_per_epoch,
            profile=schedule.profile_range() or (0, 0),
        )

    def ending_at(self, step: int) -> "Clock":
        """The clock of a run that ends at a step already."""
        return dataclasses.replace(self, total=step)

    def due(self, step: int, every: int) -> bool:
        """Whether something is due at a step that comes at an interval, and at the end of the run."""
        return step % every == 0 or step >= self.total

    def steps_to_next(self, step: int) -> int:
        """How many steps until something is due, or the compiled loop returns anyway; 1 where steps are profiled."""
        first, last = self.profile
        if first <= step < last:
            return 1
        intervals = (self.summarize_every, self.evaluate_every, self.save_every, self.histogram_every)
        pauses = [every - step % every for every in intervals]
        return min(self.steps_per_loop, self.total - step, *pauses, *([first - step] if step < first else []))


@dataclasses.dataclass
class Pause:
    """Where the compiled loop has returned to the outer one.

    Attributes:
      step: number of steps made so far.
      stop: whether the run ends here, for a signal came, or the input can make no next batch; an action may set it.
      save: whether a checkpoint is wanted, whatever its interval says.
    """

    step: int
    stop: bool
    save: bool


class Action(NamedTuple):
    """What the outer loop does at some of its pauses.

    Attributes:
      due: a function that says whether it is due at a pause.
      do: a function that does it.
    """

    due: Callable[[Pause], bool]
    do: Callable[[Pause], None]


class Alarm:
    """Says when some minutes have passed; never, if they are 0."""

    def __init__(self, minutes: float):
        self._seconds = minutes * 60
        self.reset()

    def reset(self) -> None:
        self._start = time.monotonic()

    def rings(self) -> bool:
        return 0 < self._seconds <= time.monotonic() - self._start
