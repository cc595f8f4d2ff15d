"""When a run does what."""

import dataclasses
import time

from petseg.config import ScheduleConfig


@dataclasses.dataclass(frozen=True)
class Clock:
    """When a run does what, in steps.

    Attributes:
      total: length of the run.
      per_loop: steps in one call of the compiled loop, at most.
      summary: interval of summaries; likewise the next three.
      evaluation: see above.
      checkpoint: see above.
      histogram: see above.
      profile: the first step to profile, and the first after it; none if they are equal.
    """

    total: int
    per_loop: int
    summary: int
    evaluation: int
    checkpoint: int
    histogram: int
    profile: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, schedule: ScheduleConfig, steps_per_epoch: int) -> "Clock":
        return cls(
            total=schedule.train_steps or schedule.epochs * steps_per_epoch,
            per_loop=schedule.steps_per_loop,
            summary=schedule.summary_every,
            evaluation=schedule.eval_every or steps_per_epoch,
            checkpoint=schedule.checkpoint_every or steps_per_epoch,
            histogram=schedule.histogram_every or steps_per_epoch,
            profile=schedule.profile_range() or (0, 0),
        )

    def due(self, step: int, every: int) -> bool:
        return step % every == 0 or step >= self.total

    def steps_to_next(self, step: int) -> int:
        """How many steps until something is due, or the compiled loop returns anyway; 1 where steps are profiled."""
        first, last = self.profile
        if first <= step < last:
            return 1
        intervals = (self.summary, self.evaluation, self.checkpoint, self.histogram)
        pauses = [every - step % every for every in intervals]
        return min(self.per_loop, self.total - step, *pauses, *([first - step] if step < first else []))


class Alarm:
    """Says when some minutes have passed; never, if they are 0."""

    def __init__(self, minutes: float):
        self._seconds = minutes * 60
        self.reset()

    def reset(self) -> None:
        self._start = time.monotonic()

    def rings(self) -> bool:
        return 0 < self._seconds <= time.monotonic() - self._start
