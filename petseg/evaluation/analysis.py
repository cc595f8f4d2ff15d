"""What can be said of a finished evaluation: scores, intervals, tables. Knows counts only, neither files nor models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from petseg.config import CLASS_NAMES
from petseg.evaluation import metrics
from petseg.evaluation.evaluator import Evaluation

PERCENTILES = (5, 25, 50, 75, 95)
RESAMPLES = 2000


def results(
    evaluation: Evaluation,
    step: int,
    split: str,
    *,
    resolution: str = "",
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """What a results file holds: the counts, and every score that follows from them.

    Args:
      evaluation: what was counted. If it was detailed, so are the results.
      step: of the checkpoint.
      split: what was scored.
      resolution: at which it was, in words.
      groups: for each grouping, such as species, the group of each example.
    """
    matrix = evaluation.confusion_matrix
    found = {
        "step": step,
        "split": split,
        "examples": len(evaluation.confusion_matrices),
        "loss": evaluation.loss,
        **metrics.from_confusion_matrix(matrix, CLASS_NAMES),
        "confusion_matrix": matrix.tolist(),
    }
    if evaluation.boundaries is None or evaluation.calibration is None:
        return found
    by_class = metrics.boundary_f_scores(evaluation.boundaries.sum(axis=0))
    low, high = interval(resampled_mean_iou(evaluation.confusion_matrices))
    of_images = metrics.mean_iou(evaluation.confusion_matrices)
    return {
        **found,
        "resolution": resolution,
        "mean_iou_interval": [low, high],
        "image_iou_percentiles": {str(percent): float(np.nanpercentile(of_images, percent)) for percent in PERCENTILES},
        "boundary_f": dict(zip(CLASS_NAMES, by_class.tolist(), strict=True)),
        "pet_versus_rest": metrics.pet_versus_rest(matrix),
        "calibration_error": metrics.calibration_error(evaluation.calibration),
        "groups": {name: by_group(evaluation.confusion_matrices, members) for name, members in (groups or {}).items()},
    }


def by_group(matrices: np.ndarray, members: Sequence[str]) -> dict[str, dict[str, float]]:
    """Number of examples, mean IoU and IoU of the pet, for each group that occurs."""
    scores = {}
    for name in sorted(set(members)):
        chosen = matrices[np.array(members) == name]
        total = chosen.sum(axis=0)
        scores[name] = {
            "examples": len(chosen),
            "mean_iou": float(metrics.mean_iou(total)),
            f"iou_{CLASS_NAMES[0]}": float(metrics.iou(total)[0]),
        }
    return scores


def resampled_mean_iou(matrices: np.ndarray, seed: int = 0) -> np.ndarray:
    """Mean IoU of `RESAMPLES` splits that are drawn from this one with replacement, image by image.

    With the same seed and number of images, the same images are drawn, so two models' scores can be paired.

    Args:
      matrices: int64 [N, C, C], the confusion matrix of each image.
      seed: of the drawing.

    Returns:
      float64 [RESAMPLES].
    """
    count = len(matrices)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    sums = drawn.astype(np.float64) @ matrices.reshape(count, -1).astype(np.float64)
    return metrics.mean_iou(sums.reshape(RESAMPLES, *matrices.shape[1:]))


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The middle 95% of bootstrap samples (Efron's percentile interval)."""
    low, high = np.nanpercentile(samples, (2.5, 97.5))
    return float(low), float(high)


def compare(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Whether a model is better than another on the same images.

    Args:
      first: int64 [N, C, C], confusion matrices of one model.
      second: int64 [N, C, C], those of the other, image by image.

    Returns:
      the `difference` in mean IoU, first minus second, its paired bootstrap `interval`, and the share of resamples in
      which the first is `better`.
    """
    differences = resampled_mean_iou(first) - resampled_mean_iou(second)
    return {
        "difference": float(metrics.mean_iou(first.sum(axis=0)) - metrics.mean_iou(second.sum(axis=0))),
        "interval": list(interval(differences)),
        "better": float(np.mean(differences > 0)),
    }


def rows(
    evaluation: Evaluation, names: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> list[dict[str, str | float]]:
    """A row for each image: name, groups, mean IoU, IoU of each class, accuracy and boundary F-scores."""
    matrices = evaluation.confusion_matrices
    outlines = None if evaluation.boundaries is None else metrics.boundary_f_scores(evaluation.boundaries)
    found: list[dict[str, str | float]] = []
    for i, name in enumerate(names):
        scores = metrics.from_confusion_matrix(matrices[i], CLASS_NAMES)
        row: dict[str, str | float] = {"name": name, **{group: members[i] for group, members in groups.items()}}
        row |= {"mean_iou": scores["mean_iou"], "accuracy": scores["accuracy"]}
        row |= {f"iou_{label}": value for label, value in scores["iou"].items()}
        if outlines is not None:
            row |= {f"boundary_f_{label}": value for label, value in zip(CLASS_NAMES, outlines[i], strict=True)}
        found.append(row)
    return found


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """What `compare` found, in words."""
    low, high = comparison["interval"]
    verdict = "no difference is proven" if low <= 0 <= high else f"the {'first' if low > 0 else 'second'} is better"
    return (
        f"mean IoU, first minus second: {comparison['difference']:+.4f}, 95% interval {low:+.4f} to {high:+.4f} "
        f"(paired bootstrap, {RESAMPLES} resamples): {verdict}"
    )


def table(results: Mapping[str, Any]) -> str:
    """Results as text, a row for each class, then what is said of all."""
    columns = ["iou", "dice", "precision", "recall", *(["boundary_f"] if "boundary_f" in results else [])]
    where = f" at {results['resolution']}" if "resolution" in results else ""
    lines = [
        f"{results['split']}{where}, step {results['step']}: {results['examples']} examples, "
        f"loss {results['loss']:.4f}",
        f"{'':12}" + "".join(f"{name.replace('_', ' '):>11}" for name in columns),
    ]
    for class_name in CLASS_NAMES:
        lines.append(f"{class_name:12}" + "".join(f"{results[name][class_name]:11.4f}" for name in columns))
    between = ""
    if "mean_iou_interval" in results:
        low, high = results["mean_iou_interval"]
        between = f"   95% interval {low:.4f} to {high:.4f}"
    lines.append(f"{'mean IoU':12}{results['mean_iou']:11.4f}{between}")
    lines.append(f"{'accuracy':12}{results['accuracy']:11.4f}")
    if "mean_iou_interval" in results:
        lines += _details(results)
    return "\n".join(lines)


def _details(results: Mapping[str, Any]) -> list[str]:
    binary, percentiles = results["pet_versus_rest"], results["image_iou_percentiles"]
    shown = ", ".join(f"{percent}%: {value:.3f}" for percent, value in percentiles.items())
    lines = [
        f"pet versus rest, IoU: {binary['border_as_pet']:.4f} with the border as pet, "
        f"{binary['border_ignored']:.4f} without the border",
        f"calibration error: {results['calibration_error']:.4f}",
        f"mean IoU of single images, percentiles: {shown}",
    ]
    for group, scores in results["groups"].items():
        lines += ["", f"{group:28}{'examples':>9}{'mean IoU':>11}{'IoU ' + CLASS_NAMES[0]:>11}"]
        for name, row in scores.items():
            lines.append(f"{name:28}{row['examples']:9d}{row['mean_iou']:11.4f}{row['iou_' + CLASS_NAMES[0]]:11.4f}")
    return lines
