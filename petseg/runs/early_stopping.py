"""Whether a run ends before its last step, because its scores no longer get better: --patience."""

from pathlib import Path
from typing import NamedTuple

from petseg.config import Config
from petseg.reporting.summaries import read_csv, shown_run


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


def standstill(config: Config, metrics_file: Path, step: int) -> Standstill | None:
    """Why a run ends at a step at which it was evaluated; None if it goes on, or was not evaluated there.

    A function of what is written: of the scores up to that step, which were flushed before the checkpoint of the step
    was saved, and those of later steps will be written again by a run that goes on from there. So a run that was
    killed at any moment ends where it would have ended, and no state has to be kept for it.

    Args:
      config: config of the run; its patience may be another one than when the scores were written.
      metrics_file: the CSV file of the run's numbers.
      step: step at which the run stands.
    """
    shown, patience = shown_run(config), config.schedule.patience
    if not patience:
        return None
    # Not step 0, whose weights can be no best checkpoint.
    rows = (row for row in read_csv(metrics_file) if row[1:3] == (shown, "mean_iou") and 0 < row[0] <= step)
    scores = {at: score for at, _, _, score in rows}
    if step not in scores:
        return None
    best = max(scores, key=lambda at: (scores[at], -at))
    evaluations = sum(at > best for at in scores)
    return Standstill(best, scores[best], evaluations) if evaluations >= patience else None
