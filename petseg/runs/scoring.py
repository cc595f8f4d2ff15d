"""Scores checkpoints of a run on a split, with --watch, --compare and --csv; writes and prints the results."""

import contextlib
import csv
import dataclasses
import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.errors import CheckpointError, ConfigError
from petseg.evaluation import score_tables
from petseg.files import explain_write_errors, write_json, write_text
from petseg.runs import comparison, run_groups, training_data, watching
from petseg.runs.packed_run import PackedRun
from petseg.runs.scorer import CheckpointScores, Scorer
from petseg.runs.trained_run import TrainedRun
from petseg.runtime import process
from petseg.runtime.signals import StopSignals

logger = logging.getLogger(__name__)


def evaluate(config: EvalConfig) -> list[dict[str, Any]]:
    """Scores checkpoints of a run on a split; writes a results file and prints a table for each.

    Returns:
      the results of each checkpoint, and of each resolution, in the order in which they were scored.

    Raises:
      PetsegError: if work directory, checkpoint or split cannot be used, or a signal came.
    """
    score = config.score
    workdir = run_groups.find_single_run(score.workdir, "workdir")
    check_csv_path(score)
    with StopSignals() as signals, contextlib.ExitStack() as stack:
        if score.watch:
            watching.wait_for_config(workdir, score)
        run = TrainedRun.open(workdir, score)
        paths = _paths(run, score)
        others = []
        if score.compare:
            others.append(TrainedRun.open_to_compare(run_groups.find_single_run(score.compare, "compare"), score))
        split = checked_common_split([run, *others], score)
        placement = process.set_up_runtime(run.config, config.distribution)
        stack.enter_context(placement.naming_lost_workers())
        if score.watch and placement.cluster is not None:
            raise ConfigError("--watch: must be a single process; those of a cluster might not see the same files")
        seed = comparison.sample_seed([run, *others])
        scorer = Scorer(run, score, split, placement, signals, sample_seed=seed)
        other = Scorer(others[0], score, split, placement, signals, sample_seed=seed) if others else None
        if other is not None:
            comparison.check_pairing(scorer.examples, other.examples, native=score.resolution == "native")
        found, rows = [], []
        for path in paths:
            try:
                scored = scorer.score(path)
            except CheckpointError as error:
                if not score.watch:
                    raise
                logger.warning("skipped: %s", error)  # the run deletes old checkpoints meanwhile
                continue
            theirs = None if other is None else comparison.compare(scored, other)
            if placement.is_chief:
                write_results(scored)
                if theirs is not None and other is not None:
                    comparison.print_comparison(scored, theirs)
                    comparison.draw_comparison(scorer, other)
            found += scored.results
            rows += scored.rows
        if score.csv and placement.is_chief:
            write_csv(score.csv, rows)
        placement.leave_together()
    return found


def check_csv_path(score: ScoreConfig) -> None:
    """Raises ConfigError if --csv cannot be written."""
    if score.csv and not Path(score.csv).absolute().parent.is_dir():
        raise ConfigError(f"--csv={score.csv}: its folder does not exist")


def checked_split(run: TrainedRun | PackedRun, score: ScoreConfig) -> str:
    """The split to score; raises DataError if the run was trained on examples of it."""
    data = run.config.data
    split = score.split or data.eval_split
    if not score.allow_training_images:
        training_data.check_not_trained_on(split, data, run.classes, run.training_data)
    return split


def checked_common_split(runs: Sequence[TrainedRun], score: ScoreConfig) -> str:
    """`checked_split` for several runs; without --split, the first run's evaluation split."""
    split = checked_split(runs[0], score)
    for run in runs[1:]:
        checked_split(run, dataclasses.replace(score, split=split))
    return split


def _paths(run: TrainedRun, score: ScoreConfig) -> Iterable[str]:
    """Paths of the checkpoints to score."""
    if score.watch:
        return watching.new_checkpoints(run, score)
    return run.all_checkpoints() if score.checkpoint == "all" else [run.checkpoint(score.checkpoint)]


def write_results(scored: CheckpointScores) -> None:
    """Writes the results files of a checkpoint and prints their tables."""
    for results, file in zip(scored.results, scored.files, strict=True):
        write_json(file, results)
        print(score_tables.table(results))
        print(f"\ncheckpoint: {scored.path}\nresults:    {file}\n")


def write_csv(path: str, rows: list[dict[str, Any]]) -> None:
    """Writes rows of per-image scores to the file of --csv."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with explain_write_errors(path, flag=f"--csv={path}"):
        write_text(Path(path), text.getvalue())
    print(f"images:     {path}")
