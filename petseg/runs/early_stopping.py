"""Whether a run ends before its last step, because its scores no longer get better: --patience."""

from pathlib import Path
from typing import NamedTuple

from petseg.config import Config
from petseg.reporting.summaries import MetricsReader, shown_run


class Standstill(NamedTuple):
    """Scores that no longer get better.

    Attributes:
      step: step of the best evaluation.
      mean_iou: its score.
      evaluations: number of evaluations since.
    """

    step: int
    mean_iou: float
    evaluations: int

    def __str__(self) -> str:
        return f"no better mean IoU than the {self.mean_iou:.4f} of step {self.step} in {self.evaluations} evaluations"


class Patience:
    """Tells whether a run ends early, from the scores that its CSV file gains as it trains.

    A function of what is written: of the scores up to a step, which were flushed before the checkpoint of the step was
    saved; those of later steps will be written again by a run that is resumed there. So a run that was killed at any
    moment ends where it would have ended, and no state has to be kept for it.

    Args:
      config: config of the run; its patience may be another one than when the scores were written.
      metrics_file: the CSV file of the run's numbers; of what was read before, nothing is read again.
    """

    def __init__(self, config: Config, metrics_file: Path):
        self._patience, shown = config.schedule.patience, shown_run(config)
        self._reader = MetricsReader(metrics_file, lambda run, tag: (run, tag) == (shown, "mean_iou"))
        self._scores: dict[int, float] = {}

    def standstill(self, step: int) -> Standstill | None:
        """Why the run ends at a step at which it was evaluated; None if it goes on, or was not evaluated there."""
        if not self._patience:
            return None
        if self._reader.was_replaced():
            self._scores.clear()
        self._scores.update((at, score) for at, _, _, score in self._reader.new_rows())
        scores = {at: score for at, score in self._scores.items() if 0 < at <= step}  # step 0 is no best checkpoint
        if step not in scores:
            return None
        best = max(scores, key=lambda at: (scores[at], -at))
        evaluations = sum(at > best for at in scores)
        return Standstill(best, scores[best], evaluations) if evaluations >= self._patience else None


def standstill(config: Config, metrics_file: Path, step: int) -> Standstill | None:
    """`Patience.standstill` of a run, for those who ask once."""
    return Patience(config, metrics_file).standstill(step)
