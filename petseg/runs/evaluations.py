"""The evaluations of a run while it trains: scored, the best kept, results written, told; and those that are owed."""

import contextlib
import logging
from pathlib import Path
from typing import Any

from petseg.config import Config
from petseg.data.decoding import Examples
from petseg.evaluation.evaluator import Evaluation, Evaluator
from petseg.evaluation.results import split_results
from petseg.files import read_json, write_json
from petseg.reporting.report import NullReport
from petseg.reporting.summaries import EMA, EVAL, shown_run, was_evaluated
from petseg.reporting.telemetry import Stopwatch
from petseg.runs.checkpoints import BestCheckpoint
from petseg.runs.schedule import Clock
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime.strategies import Placement
from petseg.training.weight_averaging import WeightAverage

logger = logging.getLogger(__name__)


class Evaluations:
    """Scores the evaluation split with the weights of a run, and with their averages where it keeps them.

    Args:
      config: config of the run.
      workdir: work directory of the run, where results go.
      placement: devices and cluster of the run; in a cluster, all processes score together, and the chief writes.
      evaluator: evaluator of the run's model on the evaluation split.
      average: average of the weights, or None.
      best: the best checkpoint so far.
      examples: the examples of the evaluation split.
      stopwatch: stopwatch of the run.
    """

    def __init__(
        self,
        config: Config,
        workdir: WorkDirectory,
        placement: Placement,
        evaluator: Evaluator,
        average: WeightAverage | None,
        best: BestCheckpoint,
        examples: Examples,
        stopwatch: Stopwatch,
    ):
        self._config, self._workdir, self._placement = config, workdir, placement
        self._evaluator, self._average, self._best = evaluator, average, best
        self._examples, self._stopwatch = examples, stopwatch

    def owes(self, step: int, clock: Clock) -> bool:
        """Whether an evaluation comes first: at the start if asked for, else one that a stopped process left undone.

        What was done is told by files that only training writes; results may be those of eval.py.
        """
        if step == 0:
            owes = self._config.schedule.eval_at_start
        else:
            done = was_evaluated(self._workdir.metrics_file, step) and self._results_file(step, EVAL).exists()
            owes = clock.due(step, clock.evaluate_every) and not done
        return any(self._placement.gather(int(owes)))

    def written(self, step: int) -> dict[str, Any]:
        """What `evaluate` returned at a step, from its files; nothing if there are none."""
        results, averaged = (
            read_json(file) if file.exists() else {}
            for file in (self._results_file(step, EVAL), self._results_file(step, EMA))
        )
        return {**results, EMA: averaged} if averaged else results

    def evaluate(self, step: int, report: NullReport) -> dict[str, Any] | None:
        """Scores the split, keeps what is best, writes results and tells all; None if a signal ended it early.

        Where weights are averaged, both are scored; the results of the averaged ones stand under "ema" in the others.
        """
        with self._stopwatch.timing("evaluation"):
            evaluations = self._score()
        if evaluations is None:
            return None
        split, shown = self._config.data.eval_split, shown_run(self._config)
        classes = self._examples.classes
        by_run = {
            run: split_results(evaluation, step, split, classes, sample=self._examples.sample)
            for run, evaluation in evaluations.items()
        }
        if self._placement.is_chief:
            if step:
                with self._stopwatch.timing("checkpoints"):
                    self._best.offer(by_run[shown]["mean_iou"], step)
            for run, scores in reversed(by_run.items()):
                write_json(self._results_file(step, run), scores)
                logger.info(
                    "step %d: %s%s: loss %.4f, accuracy %.4f, mean IoU %.4f (%s)", step, split,
                    "" if run == EVAL else f", {run}", scores["loss"], scores["accuracy"], scores["mean_iou"],
                    ", ".join(f"{name} {value:.4f}" for name, value in scores["iou"].items()),
                )  # fmt: skip
            with self._stopwatch.timing("summaries"), self._averaged_weights():
                report.evaluation(step, evaluations, by_run, self._examples, self._evaluator)
        return {**by_run[EVAL], **{run: scores for run, scores in by_run.items() if run != EVAL}}

    def _score(self) -> dict[str, Evaluation] | None:
        """Evaluates the weights, and their averages where there are any; None if a signal ended it early."""
        evaluation = self._evaluator.evaluate()
        if self._average is None:
            return None if evaluation is None else {EVAL: evaluation}
        with self._averaged_weights():
            averaged = self._evaluator.evaluate()
        return None if evaluation is None or averaged is None else {EVAL: evaluation, EMA: averaged}

    def _averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Has the averages in the model for a while, where there are any."""
        return contextlib.nullcontext() if self._average is None else self._average.in_place()

    def _results_file(self, step: int, run: str) -> Path:
        return self._workdir.results_file(self._config.data.eval_split, step, "" if run == EVAL else run)
