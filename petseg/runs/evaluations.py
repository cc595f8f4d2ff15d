"""Evaluations during training, including one that an interrupted process missed; keeps the best checkpoint."""

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Any

from petseg import custom_code
from petseg.config import Config
from petseg.data.examples import Examples
from petseg.evaluation import metrics
from petseg.evaluation.evaluation import Evaluation
from petseg.evaluation.evaluator import Evaluator
from petseg.evaluation.results import split_results
from petseg.files import read_json, write_json
from petseg.reporting.report import Report
from petseg.reporting.summaries import EMA, EVAL, was_evaluated
from petseg.reporting.telemetry import Stopwatch
from petseg.runs import model_selection
from petseg.runs.async_checkpoints import CheckpointWriter
from petseg.runs.checkpoints import BestCheckpoint
from petseg.runs.early_stopping import EarlyStopping
from petseg.runs.schedule import Schedule
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime.strategies import Placement
from petseg.training.weight_averaging import WeightAverage

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Evaluations:
    """Scores the evaluation split with a run's weights, and with their averages if it keeps them.

    All processes of a cluster score together, and the chief writes results files and the best checkpoint.
    """

    config: Config
    workdir: WorkDirectory
    placement: Placement
    evaluator: Evaluator
    average: WeightAverage | None  # averaged weights, if the run keeps them
    best: BestCheckpoint  # kept by the score of model selection
    writer: CheckpointWriter  # writes the best checkpoint
    examples: Examples  # the evaluation split, or a sample of it
    stopwatch: Stopwatch  # of the training loop

    def __post_init__(self) -> None:
        self._early_stopping = EarlyStopping(self.config, self.workdir.metrics_file)
        # Loaded once: later edits of their files do not affect this run.
        self._own_scores = metrics.own(self.config.extension.scores)
        self._action = custom_code.function_of("after_evaluation", self.config.extension.after_evaluation)

    def due_before_training(self, step: int, schedule: Schedule) -> bool:
        """Whether to evaluate before the first step of this process.

        At the start of a run with --eval_at_start; later, if an earlier process stopped before it finished the
        evaluation of this step. Only files that training writes count, since results files may be those of eval.py.
        """
        if step == 0:
            due = self.config.schedule.eval_at_start
        else:
            done = was_evaluated(self.workdir.metrics_file, step) and self._results_file(step, EVAL).exists()
            due = schedule.due(step, schedule.eval_every) and not done
        return any(self.placement.gather(int(due)))

    def earlier_results(self, step: int) -> dict[str, Any]:
        """What `evaluate` returned at a step in an earlier process, from its files; empty if there are none."""
        results, averaged = (
            read_json(file) if file.exists() else {}
            for file in (self._results_file(step, EVAL), self._results_file(step, EMA))
        )
        return {**results, EMA: averaged} if averaged else results

    def evaluate(self, step: int, report: Report) -> dict[str, Any] | None:
        """Scores the split, keeps the best checkpoint, writes results and reports them.

        Returns the scores, with those of averaged weights under "ema"; None if a stop request ended the evaluation.
        """
        with self.stopwatch.timing("evaluation"):
            evaluations = self._score()
            if evaluations is None:
                return None
            split, classes = self.config.data.eval_split, self.examples.classes
            sample, own_scores = self.examples.sampling, self._own_scores
            by_run = {
                run: split_results(evaluation, step, split, classes, sample=sample, own_scores=own_scores)
                for run, evaluation in evaluations.items()
            }
        results = {**by_run[EVAL], **{run: scores for run, scores in by_run.items() if run != EVAL}}
        if self.placement.is_chief:
            if step:
                with self.stopwatch.timing("checkpoints"):
                    selected = model_selection.selected_results(self.config, results)
                    self.best.offer(selected[model_selection.SCORE], step)
                    self._early_stopping.add(step, selected[model_selection.SCORE])
            for run, scores in reversed(by_run.items()):
                logger.info(
                    "step %d: %s%s: loss %.4f, accuracy %.4f, mean IoU %.4f (%s)", step, split,
                    "" if run == EVAL else f", {run}", scores["loss"], scores["accuracy"], scores["mean_iou"],
                    ", ".join(f"{name} {value:.4f}" for name, value in scores["iou"].items()),
                )  # fmt: skip
            with self.stopwatch.timing("summaries"), self._averaged_weights():
                report.evaluation(step, evaluations, by_run, self.examples, self.evaluator)
            with self.stopwatch.timing("checkpoints"):
                self.writer.wait()  # results mean that an evaluation is complete, so the best checkpoint is, too
            for run, scores in reversed(by_run.items()):
                write_json(self._results_file(step, run), scores)
            if self._action:
                self._action(step, results, self.workdir.path)
        return results

    def ends_early(self, step: int, schedule: Schedule) -> bool:
        """Whether the run ends at a step because its score no longer improves. All processes call this together.

        The chief decides, since it is the one that wrote the scores.
        """
        found = None
        if self.placement.is_chief and step < schedule.last_step:
            found = self._early_stopping.no_improvement(step)
        if found:
            logger.info("step %d: %s: the run ends here", step, found)
        return bool(self.config.schedule.patience) and any(self.placement.gather(int(found is not None)))

    def _score(self) -> dict[str, Evaluation] | None:
        """Evaluates the weights, and their averages if there are any; None if a stop request ended it."""
        evaluation = self.evaluator.evaluate()
        if self.average is None:
            return None if evaluation is None else {EVAL: evaluation}
        with self._averaged_weights():
            averaged = self.evaluator.evaluate()
        return None if evaluation is None or averaged is None else {EVAL: evaluation, EMA: averaged}

    def _averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Swaps the averages into the model for a while, if there are any."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def _results_file(self, step: int, run: str) -> Path:
        return self.workdir.results_file(self.config.data.eval_split, step, "" if run == EVAL else run)
