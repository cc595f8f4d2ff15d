"""Contents of results files and of the per-image CSV table, computed from the counts of an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from petseg.classes import Classes
from petseg.evaluation import metrics
from petseg.evaluation.confidence_intervals import POISSON, interval, resampled_mean_iou
from petseg.evaluation.evaluation import Evaluation

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
    own_scores: metrics.OwnScores | None = None,
) -> dict[str, Any]:
    """Content of a results file: the confusion matrix and all scores.

    Args:
      evaluation: the counts; those of an evaluation with details give more scores.
      sample: `Examples.sampling` of the split; None or empty if all of it was scored.
    """
    matrix = evaluation.pixels
    scores = {
        "step": step,
        "split": split,
        "examples": evaluation.examples,
        **({"sample": dict(sample)} if sample else {}),
        **({"score_weights": True} if evaluation.unit > 1 else {}),
        "loss": evaluation.loss,
        **metrics.from_confusion_matrix(matrix, classes, own_scores, evaluation.pixels_of_images),
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
        **_foreground(matrix, classes),
        "calibration_error": metrics.calibration_error(evaluation.calibration),
        "groups": {
            name: by_group(evaluation.confusion_matrices, [members[i] for i in evaluation.ids], classes)
            for name, members in (groups or {}).items()
        },
    }


def _foreground(matrix: np.ndarray, classes: Classes) -> dict[str, Any]:
    """Names of the foreground and of its borders, and the IoU without borders, as far as there are any."""
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
    """Number of examples, mean IoU and, if there is one foreground class, its IoU, for each label that occurs."""
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
    """Rows of the per-image table: name, labels, mean IoU, accuracy, IoU and boundary F of each class."""
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
