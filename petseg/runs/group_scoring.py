"""Scores groups of runs of one recipe and compares two groups: mean, spread, intervals over images and seeds.

Runs of the folds of one split are scored on their own folds each, and then as one run.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petseg.config import Config
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.data.examples import Examples
from petseg.data.folds import group_of
from petseg.errors import DataError, WorkDirectoryError
from petseg.evaluation import confidence_intervals, score_tables
from petseg.evaluation.confidence_intervals import Counts
from petseg.reporting.summaries import EVAL
from petseg.runs import checkpoints, comparison, cross_validation, model_selection, run_groups, scoring
from petseg.runs.scorer import CheckpointScores, Scorer
from petseg.runs.trained_run import TrainedRun
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime import process_setup
from petseg.runtime.signals import StopSignals
from petseg.runtime.strategies import Placement


@dataclasses.dataclass
class Side:
    """The scored runs of a group."""

    runs: list[CheckpointScores]  # scores of each run
    scorer: Scorer  # scorer of the first run, for pictures
    # for runs of folds: the group of each example, by run; empty for other runs
    groups: list[list[str]] = dataclasses.field(default_factory=list)

    def names(self) -> list[str]:
        return [run.path for run in self.runs]

    def counts(self, resolution: int) -> list[Counts]:
        """Per-image counts of each run; for folds, per-group counts of all folds together, if there are any."""
        if self.groups:
            pooled = cross_validation.pooled_counts(self.runs, self.groups, resolution)
            return [] if pooled is None else [pooled]
        return [run.evaluations[resolution].counts for run in self.runs]


def evaluate(config: EvalConfig) -> list[dict[str, Any]]:
    """Scores the runs of --workdir and of --compare; prints tables and writes results files.

    Returns the results of the runs of --workdir, one per run and resolution, in this order; with --compare, each
    contains the comparison of the two groups. Raises PetsegError if a work directory, checkpoint or split cannot be
    used, or a signal came.
    """
    score = config.score
    scoring.check_csv_path(score)
    sides = {flag: run_groups.find_runs(getattr(score, flag), flag) for flag in ("workdir", "compare")}
    with StopSignals() as signals, contextlib.ExitStack() as stack:
        runs = [TrainedRun.open(workdir, score) for workdir in sides["workdir"]]
        others = [TrainedRun.open_to_compare(workdir, score) for workdir in sides["compare"]]
        for workdirs in sides.values():
            run_groups.warn_of_different_recipes(workdirs)
        in_folds = not score.split and cross_validation.are_folds({"workdir": runs, "compare": others})
        if in_folds:
            runs, others = cross_validation.by_fold(runs), cross_validation.by_fold(others)
            for each in (*runs, *others):
                scoring.check_not_trained_on(each, each.config.data.eval_split, score)
        split = "" if in_folds else scoring.checked_common_split([*runs, *others], score)
        placement = process_setup.set_up_runtime(runs[0].config, config.distribution)
        stack.enter_context(placement.together())

        ours, theirs = _score(runs, others, score, split, placement, signals)
        paired = _paired_resolutions(ours, theirs)
        if theirs is not None:
            names = {"runs": ours.names(), "other": theirs.names(), "weights": theirs.runs[0].results[0]["weights"]}
            counts = {i: (ours.counts(i), theirs.counts(i)) for i in paired}
            if not all(counts[paired[0]]):
                raise DataError("--compare: folds this large have no per-image scores; pass a smaller --eval_examples")
            comparison.add_comparison(ours.runs, counts, **names)
        if placement.is_chief:
            for run in ours.runs:
                scoring.write_results(run)
            _print(ours, theirs, paired)
            if theirs is not None:
                comparison.draw_comparison(ours.scorer, theirs.scorer)
            if score.csv:
                rows = [{"run": str(Path(each.path).parents[1]), **row} for each in ours.runs for row in each.rows]
                scoring.write_csv(score.csv, rows)
    return [results for run in ours.runs for results in run.results]


def _score(
    runs: Sequence[TrainedRun],
    others: Sequence[TrainedRun],
    score: ScoreConfig,
    split: str,
    placement: Placement,
    signals: StopSignals,
) -> tuple[Side, Side | None]:
    """Scores one run after the other on the same images; keeps only the counts of all but the first run of a side.

    If `split` is empty, each run is scored on its own fold.
    """
    seed, native = comparison.sample_seed([*runs, *others]), score.resolution == "native"
    first: dict[str, Examples] = {}  # by split
    sides: list[Side] = []
    for flag, members in {"workdir": runs, "compare": others}.items():
        for i, run in enumerate(members):
            of_run = split or run.config.data.eval_split
            scorer = Scorer(run, score, of_run, placement, signals, sample_seed=seed)
            comparison.check_pairing(
                first.setdefault(of_run, scorer.examples), scorer.examples, native=native, flag=flag
            )
            if i == 0:
                sides.append(Side([], scorer))
            sides[-1].runs.append(scorer.score(scorer.latest_or_best()))
            if not split:
                sides[-1].groups.append([group_of(name, run.config.data) for name in scorer.examples.names])
    return sides[0], sides[1] if others else None


def _paired_resolutions(ours: Side, theirs: Side | None) -> list[int]:
    """Indices of the results that can be compared; runs of folds have other images each, so only those of one fold."""
    sides = [side.runs for side in (ours, theirs) if side is not None]
    alike = list(zip(*sides, strict=True)) if ours.groups else [[run for runs in sides for run in runs]]
    flag = "workdir" if theirs is None else "compare"
    found = [comparison.paired_resolutions(runs, flag=flag) for runs in alike]
    return [i for i in found[0] if all(i in each for each in found)]


def last_results_file(config: Config) -> Path:
    """Results file of the last evaluation during training; raises WorkDirectoryError if there is none."""
    workdir = WorkDirectory(config.runtime.workdir)
    selected = model_selection.selected_weights(config)
    variant = "" if selected == EVAL else selected
    for step in checkpoints.steps(workdir.checkpoints):
        file = workdir.results_file(config.data.eval_split, step, variant)
        if file.exists():
            return file
    raise WorkDirectoryError(f"{workdir.path}: there is no results file of {config.data.eval_split} yet")


def _print(ours: Side, theirs: Side | None, paired: Sequence[int]) -> None:
    for i in paired:
        results = ours.runs[0].results[i]
        print(f"at {results['resolution']}")
        for side in (ours, theirs):
            if side is not None:
                _print_side(side, i)
        if theirs is not None:
            what, over = ("folds", "images or groups") if ours.groups else ("runs", "images and seeds")
            print(f"first: {len(ours.runs)} {what}, second: {len(theirs.runs)} {what}; 95% interval over {over}")
            print(score_tables.comparison_text(results["comparison"]))


def _print_side(side: Side, i: int) -> None:
    counts = side.counts(i)
    interval = confidence_intervals.interval_of_runs(counts) if counts else None
    results = {run.path: run.results[i] for run in side.runs}
    file = side.runs[0].files[i]
    if side.groups and file is not None:
        run = side.scorer.run
        cross_validation.print_and_write(cross_validation.summary(results, run.config, run.classes, interval), file)
    elif interval:
        print(score_tables.runs_table(results))
        over = "images and seeds" if len(side.runs) > 1 else "images, of one seed"
        print("95% interval of the mean IoU over {}: {:.4f} to {:.4f}\n".format(over, *interval))
