"""What a results file and a table of images hold: every score that follows from the counts of an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from petseg.classes import Classes
from petseg.evaluation import metrics
from petseg.evaluation.confidence_intervals import POISSON, interval, resampled_mean_iou
from petseg.evaluation.evaluator import Evaluation

PERCENTILES = (5, 25, 50, 75, 95)


def split_results(
    evaluation: Evaluation,
    step: int,
    split: str,
    classes: Classes,
    *,
    resolution: str = "",
    groups: Mapping[str, Sequence[str]] | None = None,
    sample: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What a results file holds: the counts, and every score that follows from them.

    Args:
      evaluation: what was counted. If it was detailed, so are the results.
      step: step of the checkpoint.
      split: name of the split that was scored.
      classes: the classes.
      resolution: resolution at which it was scored, in words.
      groups: the group of each example, for each grouping, such as species.
      sample: which sample of the split was scored, as `Examples` has it; nothing if all of it was.
    """
    matrix = evaluation.confusion_matrix
    scores = {
        "step": step,
        "split": split,
        "examples": evaluation.examples,
        **({"sample": dict(sample)} if sample else {}),
        "loss": evaluation.loss,
        **metrics.from_confusion_matrix(matrix, classes),
        "confusion_matrix": matrix.tolist(),
    }
    outlines = evaluation.boundary_total
    if outlines is None or evaluation.calibration is None:
        return scores
    by_class = metrics.boundary_f_scores(outlines)
    low, high = interval(resampled_mean_iou(evaluation.counts))
    of_images = metrics.mean_iou(evaluation.confusion_matrices)
    return {
        **scores,
        "resolution": resolution,
        "mean_iou_interval": [low, high],
        **({"bootstrap": POISSON, "sampled_images": len(evaluation.ids)} if evaluation.large_split else {}),
        "image_iou_percentiles": {str(percent): float(np.nanpercentile(of_images, percent)) for percent in PERCENTILES},
        "boundary_f": dict(zip(classes.names, by_class.tolist(), strict=True)),
        **_of_foreground(matrix, classes),
        "calibration_error": metrics.calibration_error(evaluation.calibration),
        "groups": {
            name: by_group(evaluation.confusion_matrices, [members[i] for i in evaluation.ids], classes)
            for name, members in (groups or {}).items()
        },
    }


def _of_foreground(matrix: np.ndarray, classes: Classes) -> dict[str, Any]:
    """What is foreground, and its IoU without borders, where there are any."""
    if not classes.foreground_name:
        return {}
    names = [classes.names[i] for i in classes.borders]
    if not names:
        return {"foreground": classes.foreground_name}
    return {
        "foreground": classes.foreground_name,
        "borders": names,
        "foreground_iou_without_borders": metrics.foreground_iou(matrix, classes, without_borders=True),
    }


def by_group(matrices: np.ndarray, members: Sequence[str], classes: Classes) -> dict[str, dict[str, float]]:
    """Number of examples, mean IoU and, where there is one, IoU of the foreground alone, for each group that occurs."""
    scores = {}
    for name in sorted(set(members)):
        chosen = matrices[np.array(members) == name]
        total = chosen.sum(axis=0)
        scores[name] = {"examples": len(chosen), "mean_iou": float(metrics.mean_iou(total))}
        if classes.foreground_name in classes.names:
            of_class = metrics.iou(total)[classes.names.index(classes.foreground_name)]
            scores[name][f"iou_{classes.foreground_name}"] = float(of_class)
    return scores


def image_rows(
    evaluation: Evaluation, classes: Classes, names: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> list[dict[str, str | float]]:
    """A row for each image whose counts were kept: name, groups, mean IoU, IoU of each class, accuracy, boundary F."""
    matrices = evaluation.confusion_matrices
    outlines = None if evaluation.boundaries is None else metrics.boundary_f_scores(evaluation.boundaries)
    table: list[dict[str, str | float]] = []
    for i, image in enumerate(evaluation.ids):
        scores = metrics.from_confusion_matrix(matrices[i], classes)
        labels = {group: members[image] for group, members in groups.items()}
        row: dict[str, str | float] = {"name": names[image], **labels}
        row |= {"mean_iou": scores["mean_iou"], "accuracy": scores["accuracy"]}
        row |= {f"iou_{label}": value for label, value in scores["iou"].items()}
        if outlines is not None:
            row |= {f"boundary_f_{label}": value for label, value in zip(classes.names, outlines[i], strict=True)}
        table.append(row)
    return table
