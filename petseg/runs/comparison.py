"""Compares the scores of runs image by image: which runs can be paired, difference, pictures."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.data.examples import Examples
from petseg.errors import DataError
from petseg.evaluation import confidence_intervals, large_splits, score_tables
from petseg.evaluation.confidence_intervals import Counts
from petseg.files import write_bytes
from petseg.reporting import pictures
from petseg.runs.open_trained_run import Run
from petseg.runs.scorer import CheckpointScores, Scorer

logger = logging.getLogger(__name__)
SHEET_EXAMPLES = 12
MASKS_COMPARED_FIRST = 8  # before scoring; afterwards all masks are compared by their digests
DIFFERENT_TRUTH = (
    "so their scores cannot be compared image by image; --resolution=native scores all against the masks as drawn"
)


def sample_seed(runs: Sequence[Run]) -> int:
    """Seed of the sample of --eval_examples: the smallest of the runs, so that their order does not matter."""
    return min(member.config.runtime.seed for run in runs for member in run.members)


def check_pairing(first: Examples, second: Examples, *, native: bool = False, flag: str = "compare") -> None:
    """Raises DataError if two runs do not have the same images, classes and true masks, as far as seen before scoring.

    With `native`, runs are scored at native resolution too, where resized masks do not matter. The error names `flag`.
    """
    if first.origin != second.origin:
        raise DataError(
            f"--{flag}: the two runs must have the same data set, to pair their images; "
            f"got {first.origin} and {second.origin}"
        )
    if first.names != second.names:
        raise DataError(f"--{flag}: the two runs must have the same images; names in {first.origin} differ")
    if first.classes.names != second.classes.names:
        one, other = (", ".join(each.classes.names) for each in (first, second))
        raise DataError(f"--{flag}: the two runs must have the same classes; got {one} and {other}")
    if len({large_splits.is_large(len(each), len(each.classes)) for each in (first, second)}) > 1:
        raise DataError(
            f"--{flag}: {len(first)} images are too many for per-image scores with {len(first.classes)} or "
            f"{len(second.classes)} classes, so they cannot be paired; pass a smaller --eval_examples"
        )
    if native:
        return
    some = range(min(MASKS_COMPARED_FIRST, len(first)))
    masks = [each.read(some)[1] for each in (first, second)]
    sizes = ["{} x {}".format(*each.shape[1:3]) for each in masks]
    if sizes[0] != sizes[1]:
        raise DataError(f"--{flag}: the two runs were scored at {sizes[0]} and {sizes[1]} pixels, {DIFFERENT_TRUTH}")
    if not np.array_equal(masks[0], masks[1]):
        raise DataError(f"--{flag}: the masks of the two runs differ, as with another --resize, {DIFFERENT_TRUTH}")


def paired_resolutions(runs: Sequence[CheckpointScores], *, flag: str = "compare") -> list[int]:
    """Indices of the results with the same true masks in all runs; raises DataError if there are none."""
    first, *others = runs
    paired = []
    for i, truth in enumerate(evaluation.truth for evaluation in first.evaluations):
        truths = [each.evaluations[i].truth for each in others]
        if truth is not None and all(each is not None and np.array_equal(each, truth) for each in truths):
            paired.append(i)
        elif len(first.evaluations) > 1:
            logger.info("--%s: at %s the runs' masks differ: not compared there", flag, first.results[i]["resolution"])
    if paired:
        return paired
    if len(first.evaluations) > 1:
        raise DataError(
            f"--{flag}: the runs were scored against different masks, also at native resolution; their masks must be "
            "read with the same values, colours and ignored values"
        )
    raise DataError(f"--{flag}: the masks of the runs differ, as with another --resize, {DIFFERENT_TRUTH}")


def compare(scored: CheckpointScores, other: Scorer) -> CheckpointScores:
    """Scores the other run, adds the comparison to the first run's results and returns the other's scores."""
    theirs = other.score(other.latest_or_best())
    paired = paired_resolutions([scored, theirs])
    counts = {i: ([scored.evaluations[i].counts], [theirs.evaluations[i].counts]) for i in paired}
    add_comparison([scored], counts, other=theirs.path, weights=theirs.results[0]["weights"])
    return theirs


def add_comparison(
    ours: Sequence[CheckpointScores], counts: Mapping[int, tuple[Sequence[Counts], Sequence[Counts]]], **names: Any
) -> None:
    """Adds the comparison of two recipes' means to the results of the first one's runs.

    `counts` has the counts of the runs of both, at each paired resolution.
    """
    for i, both in counts.items():
        found = {**names, **confidence_intervals.compare(*both)}
        for run in ours:
            run.results[i]["comparison"] = found


def draw_comparison(scorer: Scorer, other: Scorer) -> None:
    """Draws predictions of two runs for the same images, the other run first, as in before and after."""
    images, masks, mine, names = scorer.predictions(SHEET_EXAMPLES)
    _, their_masks, theirs, _ = other.predictions(SHEET_EXAMPLES)
    stretched = {each.run.config.data.resize for each in (scorer, other)} == {"stretch"}
    if not stretched and not np.array_equal(masks, their_masks):
        logger.info("no pictures of the comparison: the two runs crop the images differently")
        return
    theirs = tf.image.resize(theirs[..., None], mine.shape[1:], method="nearest").numpy()[..., 0]
    first, second = (Path(each.run.name).name for each in (other, scorer))
    titles = (first, second) if first != second else ("second", "first")
    sheet = pictures.comparison_sheet(
        images, masks, dict(zip(titles, (theirs, mine), strict=True)), names, scorer.run.classes
    )
    if scorer.run.figures is None:
        return
    file = scorer.run.figures / "comparison.png"
    write_bytes(file, pictures.to_png(sheet))
    print(f"pictures:   {file}")


def print_comparison(scored: CheckpointScores, theirs: CheckpointScores) -> None:
    for results in theirs.results:
        print(score_tables.table(results))
        print(f"\ncheckpoint: {theirs.path}\n")
    names = [f"{each.path} ({each.results[0]['weights']} weights)" for each in (scored, theirs)]
    print(f"first: {names[0]}, second: {names[1]}")
    for results in scored.results:
        if "comparison" in results:
            print(f"at {results['resolution']}: {score_tables.comparison_text(results['comparison'])}")
