"""When a run does what, in steps; and how long its parts take."""

import dataclasses
import time

from petseg.config import ScheduleConfig


@dataclasses.dataclass(frozen=True)
class Clock:
    """When a run does what, in steps."""

    total: int
    per_loop: int
    summary: int
    evaluation: int
    checkpoint: int

    @classmethod
    def of(cls, schedule: ScheduleConfig, steps_per_epoch: int) -> "Clock":
        return cls(
            total=schedule.train_steps or schedule.epochs * steps_per_epoch,
            per_loop=schedule.steps_per_loop,
            summary=schedule.summary_every,
            evaluation=schedule.eval_every or steps_per_epoch,
            checkpoint=schedule.checkpoint_every or steps_per_epoch,
        )

    def due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.total

    def steps_to_next(self, step: int) -> int:
        """How many steps until something is due, or the compiled loop returns anyway."""
        pauses = [every - step % every for every in (self.summary, self.evaluation, self.checkpoint)]
        return min(self.per_loop, self.total - step, *pauses)


class Alarm:
    """Says when some minutes have passed; never, if they are 0."""

    def __init__(self, minutes: float):
        self._seconds = minutes * 60
        self.reset()

    def reset(self) -> None:
        self._start = time.monotonic()

    def rings(self) -> bool:
        return 0 < self._seconds <= time.monotonic() - self._start


class Timer:
    """Seconds spent in ``with timer:`` since the last `rate`: training without evaluation and checkpoints."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._seconds += time.perf_counter() - self._start

    def rate(self, count: int) -> float:
        """Count per second; starts anew."""
        rate = count / self._seconds if self._seconds else float("nan")
        self._seconds = 0.0
        return rate
