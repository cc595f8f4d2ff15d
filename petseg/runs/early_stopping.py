"""Early stopping: whether a run ends before its last step because its score no longer improves (--patience)."""

from pathlib import Path
from typing import NamedTuple

from petseg.config import Config
from petseg.reporting.summaries import read_csv
from petseg.runs import model_selection


class NoImprovement(NamedTuple):
    """The reason for an early stop."""

    step: int  # step of the best evaluation
    mean_iou: float  # its score
    evaluations: int  # number of evaluations since

    def __str__(self) -> str:
        return f"mean IoU has not improved on {self.mean_iou:.4f} (step {self.step}) in {self.evaluations} evaluations"


class EarlyStopping:
    """Decides whether a run ends early, from its logged scores, which are read once, and those of this process.

    A function of the logged scores up to a step, which are flushed before the step's checkpoint is saved; later scores
    are written again by a run that resumes there. So a run that was killed at any point stops at the same step as one
    that was not, and no state has to be saved.

    Args:
      config: config of the run; its patience may differ from that with which the scores were written.
    """

    def __init__(self, config: Config, metrics_file: Path):
        self._patience = config.schedule.patience
        selected = model_selection.selected_weights(config), model_selection.SCORE
        self._logged = lambda: read_csv(metrics_file, lambda run, tag: (run, tag) == selected)
        self._earlier: dict[int, float] | None = None  # by step; None: not read yet
        self._own: dict[int, float] = {}

    def add(self, step: int, score: float) -> None:
        """Adds the score of an evaluation of this process."""
        self._own[step] = score

    def no_improvement(self, step: int) -> NoImprovement | None:
        """Why the run ends at a step; None if it continues, or was not evaluated there."""
        if not self._patience:
            return None
        if self._earlier is None:
            self._earlier = {at: score for at, _, _, score in self._logged() if at <= step}
        # Without step 0: the weights before training are never the best checkpoint.
        scores = {at: score for at, score in {**self._earlier, **self._own}.items() if 0 < at <= step}
        if step not in scores:
            return None
        best = max(scores, key=lambda at: (scores[at], -at))
        evaluations = sum(at > best for at in scores)
        return NoImprovement(best, scores[best], evaluations) if evaluations >= self._patience else None


def no_improvement(config: Config, metrics_file: Path, step: int) -> NoImprovement | None:
    """`EarlyStopping.no_improvement` of a run, for a single question."""
    return EarlyStopping(config, metrics_file).no_improvement(step)
