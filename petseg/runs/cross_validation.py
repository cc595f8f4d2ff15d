"""Scores of the runs of all folds as one: each example is scored by the run that was not trained on it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petseg.classes import Classes
from petseg.config import Config, folds
from petseg.errors import ConfigError
from petseg.evaluation import metrics, score_tables
from petseg.evaluation.confidence_intervals import Counts
from petseg.evaluation.large_splits import ResampledTotals
from petseg.files import write_json
from petseg.runs.scorer import CheckpointScores
from petseg.runs.trained_run import TrainedRun


def are_folds(sides: Mapping[str, Sequence[TrainedRun]]) -> bool:
    """Whether all runs, by the flag that names them, are evaluated on the folds of one split.

    Raises ConfigError if only some are, a fold is there twice, or two recipes have different folds.
    """
    divided_as: set[Any] = set()
    numbers: dict[str, list[int]] = {flag: [] for flag, runs in sides.items() if runs}
    for flag, run in ((flag, run) for flag, runs in sides.items() for run in runs):
        data = run.config.data
        fold = folds.parse(data.eval_split)
        divided_as.add((fold.base, fold.total, data.group_files, data.fold_seed) if fold else None)
        if len(divided_as) > 1:
            raise ConfigError(
                f"--{flag}: {run.name} was evaluated on {data.eval_split}, others on another split or other folds; "
                "all runs must be those of one --folds, or --split must name what none was trained on"
            )
        if fold and fold.number in numbers[flag]:
            raise ConfigError(f"--{flag}: {run.name} is a second run of fold {fold.number}; must be one of each fold")
        numbers[flag].append(fold.number if fold else 0)
    if divided_as == {None}:
        return False
    first, *others = numbers.values()
    if any(sorted(first) != sorted(other) for other in others):
        raise ConfigError(f"--compare: has folds {sorted(others[0])}; must have those of --workdir, {sorted(first)}")
    return True


def by_fold(runs: Sequence[TrainedRun]) -> list[TrainedRun]:
    """The runs in the order of their folds."""
    return sorted(runs, key=lambda run: folds.parse(run.config.data.eval_split) or ())


def pooled_counts(runs: Sequence[CheckpointScores], groups: Sequence[Sequence[str]], resolution: int) -> Counts | None:
    """Confusion matrices of all groups of all folds, int64 [G, C, C]; None if a fold is too large for them."""
    counts = [run.evaluations[resolution].counts for run in runs]
    if any(isinstance(each, ResampledTotals) for each in counts):
        return None
    _, numbers = np.unique([group for of_fold in groups for group in of_fold], return_inverse=True)
    matrices = np.concatenate(counts)
    totals = np.zeros((numbers.max() + 1, *matrices.shape[1:]), matrices.dtype)
    np.add.at(totals, numbers, matrices)
    return totals


def summary(
    results: Mapping[str, Mapping[str, Any]],
    config: Config,
    classes: Classes,
    interval: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Content of a file of `write`: the results of each fold, their mean and deviation, and the pooled score.

    Args:
      results: content of a results file of each fold, by work directory.
      config, classes: of one of the runs.
      interval: the 95% interval of the pooled mean IoU over groups; None if unknown.
    """
    fold = folds.parse(config.data.eval_split)
    assert fold
    matrix = np.sum([np.array(each["confusion_matrix"]) for each in results.values()], axis=0)
    unit = "groups" if config.data.group_files else "images"
    over_folds = score_tables.statistics([each["mean_iou"] for each in results.values()])
    return {
        "split": fold.base,
        "folds": f"{len(results)} of {fold.total}",
        "mean_iou": {name.replace(" ", "_"): value for name, value in over_folds.items()},
        "pooled": {
            "examples": sum(each["examples"] for each in results.values()),
            **({"mean_iou_interval": list(interval), "interval_over": unit} if interval else {}),
            **metrics.from_confusion_matrix(matrix, classes, metrics.own(config.extension.scores)),
            "confusion_matrix": matrix.tolist(),
        },
        "runs": dict(results),
    }


def print_and_write(found: Mapping[str, Any], results_file: Path) -> None:
    """Prints the table of a summary, and writes it into `folds.json` beside the runs.

    `results_file` is that of one run, whose ending says what is special about the scores: `folds.ema.json`.
    """
    print(score_tables.runs_table(found["runs"], pooled=found["pooled"]))
    pooled = found["pooled"]
    text = f"pooled: {pooled['examples']} examples of {found['split']}, each scored by the run without its fold"
    if "mean_iou_interval" in pooled:
        text += "; 95% interval of the mean IoU over {2}: {0:.4f} to {1:.4f}".format(
            *pooled["mean_iou_interval"], pooled["interval_over"]
        )
    print(text)
    file = results_file.parents[2] / re.sub(r".*-\d+(.*)", r"folds\1", results_file.name)
    write_json(file, found)
    print(f"results: {file}\n")
