"""Evaluations during training, including one that an interrupted process missed; keeps the best checkpoint.

The evaluation split is scored with a run's weights, and with their averages if it keeps them. All processes of a
cluster score together, and the chief writes results files and the best checkpoint.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

from petseg.evaluation.evaluation import Evaluation
from petseg.evaluation.results import split_results
from petseg.files import read_json, write_json
from petseg.reporting.report import Report
from petseg.reporting.summaries import EMA, EVAL, was_evaluated
from petseg.runs import model_selection
from petseg.runs.schedule import Schedule
from petseg.runs.setup import Run

logger = logging.getLogger(__name__)


def due_before_training(run: Run, step: int, schedule: Schedule) -> bool:
    """Whether to evaluate before the first step of this process.

    At the start of a run with --eval_at_start; later, if an earlier process stopped before it finished the evaluation
    of this step. Only files that training writes count, since results files may be those of eval.py.
    """
    if step == 0:
        due = run.config.schedule.eval_at_start
    else:
        done = was_evaluated(run.workdir.metrics_file, step) and _results_file(run, step, EVAL).exists()
        due = schedule.due(step, schedule.eval_every) and not done
    return any(run.placement.gather(int(due)))


def earlier_results(run: Run, step: int) -> dict[str, Any]:
    """What `evaluate` returned at a step in an earlier process, from its files; empty if there are none."""
    results, averaged = (
        read_json(file) if file.exists() else {}
        for file in (_results_file(run, step, EVAL), _results_file(run, step, EMA))
    )
    return {**results, EMA: averaged} if averaged else results


def evaluate(run: Run, step: int, report: Report) -> dict[str, Any] | None:
    """Scores the split, keeps the best checkpoint, writes results and reports them.

    Returns the scores, with those of averaged weights under "ema"; None if a stop request ended the evaluation.
    """
    with run.stopwatch.timing("evaluation"):
        evaluations = _score(run)
        if evaluations is None:
            return None
        split, examples = run.config.data.eval_split, run.eval_examples
        classes, sample = examples.classes, examples.sampling
        by_name = {
            name: split_results(evaluation, step, split, classes, sample=sample, own_scores=run.own_scores)
            for name, evaluation in evaluations.items()
        }
    results = {**by_name[EVAL], **{name: scores for name, scores in by_name.items() if name != EVAL}}
    if run.placement.is_chief:
        if step:
            with run.stopwatch.timing("checkpoints"):
                selected = model_selection.selected_results(run.config, results)
                run.best.offer(selected[model_selection.SCORE], step)
                run.early_stopping.add(step, selected[model_selection.SCORE])
        for name, scores in reversed(by_name.items()):
            logger.info(
                "step %d: %s%s: loss %.4f, accuracy %.4f, mean IoU %.4f (%s)", step, split,
                "" if name == EVAL else f", {name}", scores["loss"], scores["accuracy"], scores["mean_iou"],
                ", ".join(f"{label} {value:.4f}" for label, value in scores["iou"].items()),
            )  # fmt: skip
        with run.stopwatch.timing("summaries"), _averaged_weights(run):
            report.evaluation(step, evaluations, by_name, examples, run.evaluator)
        with run.stopwatch.timing("checkpoints"):
            run.writer.wait()  # results mean that an evaluation is complete, so the best checkpoint is, too
        for name, scores in reversed(by_name.items()):
            write_json(_results_file(run, step, name), scores)
        if run.after_evaluation:
            run.after_evaluation(step, results, run.workdir.path)
    return results


def ends_early(run: Run, step: int, schedule: Schedule) -> bool:
    """Whether the run ends at a step because its score no longer improves. All processes call this together.

    The chief decides, since it is the one that wrote the scores.
    """
    found = None
    if run.placement.is_chief and step < schedule.last_step:
        found = run.early_stopping.no_improvement(step)
    if found:
        logger.info("step %d: %s: the run ends here", step, found)
    return bool(run.config.schedule.patience) and any(run.placement.gather(int(found is not None)))


def _score(run: Run) -> dict[str, Evaluation] | None:
    """Evaluates the weights, and their averages if there are any; None if a stop request ended it."""
    evaluation = run.evaluator.evaluate()
    if run.trainer.average is None:
        return None if evaluation is None else {EVAL: evaluation}
    with _averaged_weights(run):
        averaged = run.evaluator.evaluate()
    return None if evaluation is None or averaged is None else {EVAL: evaluation, EMA: averaged}


def _averaged_weights(run: Run) -> contextlib.AbstractContextManager[None]:
    """Swaps the averages into the model for a while, if there are any."""
    return contextlib.nullcontext() if run.trainer.average is None else run.trainer.average.in_place()


def _results_file(run: Run, step: int, name: str) -> Path:
    return run.workdir.results_file(run.config.data.eval_split, step, "" if name == EVAL else name)
