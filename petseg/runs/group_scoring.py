"""Scores groups of runs of one recipe and compares two groups: mean, spread, intervals over images and seeds."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petseg.config import Config
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.errors import WorkDirectoryError
from petseg.evaluation import confidence_intervals, score_tables
from petseg.evaluation.confidence_intervals import Counts
from petseg.files import read_json
from petseg.reporting.summaries import EVAL
from petseg.runs import checkpoints, comparison, model_selection, run_groups, scoring
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

    def names(self) -> list[str]:
        return [run.path for run in self.runs]

    def counts(self, resolution: int) -> list[Counts]:
        """Per-image counts of each run."""
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
        split = scoring.checked_common_split([*runs, *others], score)
        placement = process_setup.set_up_runtime(runs[0].config, config.distribution)
        stack.enter_context(placement.naming_lost_workers())

        ours, theirs = _score(runs, others, score, split, placement, signals)
        paired = comparison.paired_resolutions(
            [*ours.runs, *(theirs.runs if theirs else [])], flag="compare" if theirs else "workdir"
        )
        if theirs is not None:
            comparison.add_comparison(ours.runs, theirs.runs, paired, runs=ours.names(), other=theirs.names())
        if placement.is_chief:
            for run in ours.runs:
                scoring.write_results(run)
            _print(ours, theirs, paired)
            if theirs is not None:
                comparison.draw_comparison(ours.scorer, theirs.scorer)
            if score.csv:
                rows = [{"run": str(Path(each.path).parents[1]), **row} for each in ours.runs for row in each.rows]
                scoring.write_csv(score.csv, rows)
        placement.leave_together()
    return [results for run in ours.runs for results in run.results]


def _score(
    runs: Sequence[TrainedRun],
    others: Sequence[TrainedRun],
    score: ScoreConfig,
    split: str,
    placement: Placement,
    signals: StopSignals,
) -> tuple[Side, Side | None]:
    """Scores one run after the other on the same images; keeps only the counts of all but the first run of a side."""
    seed, native = comparison.sample_seed([*runs, *others]), score.resolution == "native"
    first: Scorer | None = None
    sides: list[Side] = []
    for flag, members in {"workdir": runs, "compare": others}.items():
        for i, run in enumerate(members):
            scorer = Scorer(run, score, split, placement, signals, sample_seed=seed)
            first = first or scorer
            comparison.check_pairing(first.examples, scorer.examples, native=native, flag=flag)
            if i == 0:
                sides.append(Side([], scorer))
            sides[-1].runs.append(scorer.score(scorer.latest_or_best()))
    return sides[0], sides[1] if others else None


def last_results(config: Config) -> dict[str, Any]:
    """Results of the last evaluation during training; raises WorkDirectoryError if there are none."""
    workdir = WorkDirectory(config.runtime.workdir)
    selected = model_selection.selected_weights(config)
    variant = "" if selected == EVAL else selected
    for step in checkpoints.steps(workdir.checkpoints):
        file = workdir.results_file(config.data.eval_split, step, variant)
        if file.exists():
            return read_json(file)
    raise WorkDirectoryError(f"{workdir.path}: there is no results file of {config.data.eval_split} yet")


def _print(ours: Side, theirs: Side | None, paired: Sequence[int]) -> None:
    for i in paired:
        results = ours.runs[0].results[i]
        print(f"at {results['resolution']}")
        for side in (ours, theirs):
            if side is not None:
                low, high = confidence_intervals.interval_of_runs(side.counts(i))
                print(score_tables.runs_table({run.path: run.results[i] for run in side.runs}))
                over = "images and seeds" if len(side.runs) > 1 else "images, of one seed"
                print(f"95% interval of the mean IoU over {over}: {low:.4f} to {high:.4f}\n")
        if theirs is not None:
            print(f"first: {len(ours.runs)} runs, second: {len(theirs.runs)} runs; 95% interval over images and seeds")
            print(score_tables.comparison_text(results["comparison"]))
