"""Scores as text, for the terminal."""

from collections.abc import Mapping
from typing import Any

from petseg.evaluation.confidence_intervals import RESAMPLES


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """What `compare` found, in words."""
    low, high = comparison["interval"]
    verdict = "the first is better" if low > 0 else "the second is better" if high < 0 else "no difference is proven"
    return (
        f"mean IoU, first minus second: {comparison['difference']:+.4f}, 95% interval {low:+.4f} to {high:+.4f} "
        f"(paired {_kind(comparison)}bootstrap, {RESAMPLES} resamples): {verdict}"
    )


def _kind(scores: Mapping[str, Any]) -> str:
    return f"{scores['bootstrap']} " if "bootstrap" in scores else ""


def table(results: Mapping[str, Any]) -> str:
    """Results as text, a row for each class, then what is said of all."""
    columns = ["iou", "dice", "precision", "recall", *(["boundary_f"] if "boundary_f" in results else [])]
    where = f" at {results['resolution']}" if "resolution" in results else ""
    lines = [
        f"{results['split']}{where}, step {results['step']}: {results['examples']} examples, "
        f"loss {results['loss']:.4f}",
        f"{'':12}" + "".join(f"{name.replace('_', ' '):>11}" for name in columns),
    ]
    for class_name in results["iou"]:
        lines.append(f"{class_name:12}" + "".join(f"{results[name][class_name]:11.4f}" for name in columns))
    between = ""
    if "mean_iou_interval" in results:
        low, high = results["mean_iou_interval"]
        between = f"   95% interval {low:.4f} to {high:.4f}"
        between += f" ({_kind(results)}bootstrap)" if "bootstrap" in results else ""
    lines.append(f"{'mean IoU':12}{results['mean_iou']:11.4f}{between}")
    lines.append(f"{'accuracy':12}{results['accuracy']:11.4f}")
    if "mean_iou_interval" in results:
        lines += _details(results)
    return "\n".join(lines)


def _details(results: Mapping[str, Any]) -> list[str]:
    percentiles = results["image_iou_percentiles"]
    shown = ", ".join(f"{percent}%: {value:.3f}" for percent, value in percentiles.items())
    lines = [
        *_foreground(results),
        f"calibration error: {results['calibration_error']:.4f}",
        f"mean IoU of single images, percentiles: {shown}",
    ]
    if "sampled_images" in results:
        lines.append(f"percentiles, and scores by label, are those of a sample of {results['sampled_images']} images")
    for group, scores in results["groups"].items():
        columns = [key for key in next(iter(scores.values())) if key != "examples"]
        heads = "".join(f"{key.replace('mean_iou', 'mean IoU').replace('iou_', 'IoU '):>11}" for key in columns)
        lines += ["", f"{group:28}{'examples':>9}{heads}"]
        for name, row in scores.items():
            lines.append(f"{name:28}{row['examples']:9d}" + "".join(f"{row[key]:11.4f}" for key in columns))
    return lines


def _foreground(results: Mapping[str, Any]) -> list[str]:
    """The foreground against the rest, in a line, where a data set says what its foreground is."""
    if "foreground" not in results:
        return []
    name, iou = results["foreground"], f"{results['foreground_iou']:.4f}"
    if "borders" in results:
        borders = " and ".join(results["borders"])
        iou += f" with the {borders} as {name}, {results['foreground_iou_without_borders']:.4f} without the {borders}"
    return [f"{name} versus rest, IoU: {iou}"]
