"""Intervals, in steps, at which a run logs, evaluates and saves."""

import dataclasses

from petseg.config import ScheduleConfig


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Length of a run and intervals, in optimizer steps."""

    last_step: int  # number of steps of the whole run
    steps_per_epoch: int  # number of steps in an epoch
    steps_per_loop: int  # maximum number of steps in one call of the compiled loop
    summary_every: int  # interval of training summaries
    histogram_every: int  # interval of histograms of weights and gradients
    eval_every: int  # interval of evaluations
    checkpoint_every: int  # interval of checkpoints
    profile: tuple[int, int] = (0, 0)  # first step to profile, and the first after it; no profile if they are equal

    @classmethod
    def of(cls, config: ScheduleConfig, steps_per_epoch: int) -> "Schedule":
        """The schedule of a config; an interval that is 0 there is an epoch."""
        return cls(
            last_step=config.train_steps or config.epochs * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            steps_per_loop=config.steps_per_loop,
            summary_every=config.summary_every,
            histogram_every=config.histogram_every or steps_per_epoch,
            eval_every=config.eval_every or steps_per_epoch,
            checkpoint_every=config.checkpoint_every or steps_per_epoch,
            profile=config.profile_range() or (0, 0),
        )

    def due(self, step: int, every: int) -> bool:
        """Whether something with this interval is due at a step: at each multiple, and at the last step."""
        return step % every == 0 or step >= self.last_step

    def ending_at(self, step: int) -> "Schedule":
        """The schedule of a run that ends early."""
        return dataclasses.replace(self, last_step=step)

    def steps_to_next(self, step: int) -> int:
        """Number of steps to run in one call: up to the next step at which something is due; 1 while profiling."""
        first, last = self.profile
        if first <= step < last:
            return 1
        intervals = [value for name, value in dataclasses.asdict(self).items() if name.endswith("_every")]
        limits = [self.steps_per_loop, self.last_step - step, *(every - step % every for every in intervals)]
        if step < first:
            limits.append(first - step)
        return min(limits)
