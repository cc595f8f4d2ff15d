"""Scores checkpoints of a run on a split, with --watch, --compare and --csv; writes and prints the results."""

import contextlib
import csv
import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.errors import CheckpointError, ConfigError
from petseg.evaluation import score_tables
from petseg.files import explain_write_errors, write_json, write_text
from petseg.runs import comparison, run_groups, training_data_record, watch_checkpoints
from petseg.runs.open_trained_run import Run, open_run
from petseg.runs.scorer import CheckpointScores, Scorer
from petseg.runs.trained_run import TrainedRun
from petseg.runtime import process_setup
from petseg.runtime.signals import StopSignals

logger = logging.getLogger(__name__)


def evaluate(config: EvalConfig) -> list[dict[str, Any]]:
    """Scores checkpoints of a run or an ensemble on a split; writes a results file and prints a table for each.

    Returns the results of each checkpoint, and of each resolution, in the order in which they were scored. Raises
    PetsegError if work directory, checkpoint or split cannot be used, or a signal came.
    """
    score = config.score
    check_csv_path(score)
    with StopSignals() as signals, contextlib.ExitStack() as stack:
        run = _open(score)
        paths = _paths(run, score)
        others: list[TrainedRun] = []
        if score.compare:
            others.append(TrainedRun.open_to_compare(run_groups.find_single_run(score.compare, "compare"), score))
        split = checked_common_split([run, *others], score)
        placement = process_setup.set_up_runtime(run.config, config.distribution)
        stack.enter_context(placement.together())
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
    return found


def _open(score: ScoreConfig) -> Run:
    if score.packed or score.ensemble:
        return open_run(score)
    workdir = run_groups.find_single_run(score.workdir, "workdir")
    if score.watch:
        watch_checkpoints.wait_for_config(workdir, score)
    return TrainedRun.open(workdir, score)


def check_csv_path(score: ScoreConfig) -> None:
    """Raises ConfigError if --csv cannot be written."""
    if score.csv and not Path(score.csv).absolute().parent.is_dir():
        raise ConfigError(f"--csv={score.csv}: its folder does not exist")


def checked_common_split(runs: Sequence[Run], score: ScoreConfig) -> str:
    """The split to score: without --split, the first run's evaluation split.

    Raises DataError if a run was trained on examples of it.
    """
    split = score.split or runs[0].config.data.eval_split
    for run in runs:
        check_not_trained_on(run, split, score)
    return split


def check_not_trained_on(run: Run, split: str, score: ScoreConfig) -> None:
    """Raises DataError if a run was trained on examples of a split, unless --allow_training_images is given."""
    for member in () if score.allow_training_images else run.members:
        training_data_record.check_not_trained_on(split, member.config.data, member.classes, member.training_data)


def _paths(run: Run, score: ScoreConfig) -> Iterable[str]:
    """Paths of the checkpoints to score."""
    if score.checkpoint != "all" and not score.watch:
        return [run.checkpoint(score.checkpoint)]
    assert isinstance(run, TrainedRun)  # others are refused by ScoreConfig
    return watch_checkpoints.new_checkpoints(run, score) if score.watch else run.all_checkpoints()


def write_results(scored: CheckpointScores) -> None:
    """Writes the results files of a checkpoint and prints their tables."""
    for results, file in zip(scored.results, scored.files, strict=True):
        print(score_tables.table(results))
        print(f"\ncheckpoint: {scored.path}")
        if file is not None:
            write_json(file, results)
            print(f"results:    {file}")
        print()


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
