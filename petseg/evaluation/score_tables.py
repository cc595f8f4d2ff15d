"""Scores as text tables: of one evaluation, of several runs, and comparisons."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from petseg.evaluation.confidence_intervals import RESAMPLES

STATISTICS = ("mean", "standard deviation", "lowest", "highest")
# Overall scores that are printed in lines of their own, or not at all; all others become rows and columns of tables.
PRINTED_APART = ("loss", "mean_iou", "foreground_iou", "foreground_iou_without_borders", "calibration_error")


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """The result of `confidence_intervals.compare` as one line."""
    low, high = comparison["interval"]
    verdict = "the first is better" if low > 0 else "the second is better" if high < 0 else "no significant difference"
    return (
        f"mean IoU, first minus second: {comparison['difference']:+.4f}, 95% interval {low:+.4f} to {high:+.4f} "
        f"(paired {_bootstrap(comparison)}bootstrap, {RESAMPLES} resamples): {verdict}"
    )


def _bootstrap(scores: Mapping[str, Any]) -> str:
    return f"{scores['bootstrap']} " if "bootstrap" in scores else ""


def table(results: Mapping[str, Any]) -> str:
    """Table of the content of a results file: a row per class, then overall scores and, if there are any, details."""
    columns = [name for name, of in results.items() if isinstance(of, Mapping) and of.keys() == results["iou"].keys()]
    widths = [max(11, len(name) + 2) for name in columns]
    where = f" at {results['resolution']}" if "resolution" in results else ""
    lines = [
        f"{results['split']}{where}, step {results['step']}: {results['examples']} examples, "
        f"loss {results['loss']:.4f}" + (", pixels counted by weight" if results.get("score_weights") else ""),
        f"{'':12}" + _cells([name.replace("_", " ") for name in columns], widths),
    ]
    for class_name in results["iou"]:
        lines.append(f"{class_name:12}" + _cells([f"{results[name][class_name]:.4f}" for name in columns], widths))
    lines += [f"{name:12}{value:11.4f}" for name, value in _overall_scores(results).items()]
    if "mean_iou_interval" in results:
        low, high = results["mean_iou_interval"]
        kind = f" ({_bootstrap(results)}bootstrap)" if "bootstrap" in results else ""
        lines[2 + len(results["iou"])] += f"   95% interval {low:.4f} to {high:.4f}{kind}"  # the line of the mean IoU
        lines += _details(results)
    return "\n".join(lines)


def _overall_scores(results: Mapping[str, Any]) -> dict[str, float]:
    """The scores of the whole split by title, the mean IoU first."""
    others = {
        name.replace("_", " "): value
        for name, value in results.items()
        if isinstance(value, float) and name not in PRINTED_APART
    }
    return {"mean IoU": results["mean_iou"], **others}


def _details(results: Mapping[str, Any]) -> list[str]:
    percentiles = results["image_iou_percentiles"]
    shown = ", ".join(f"{percent}%: {value:.3f}" for percent, value in percentiles.items())
    lines = [
        *_foreground(results),
        f"calibration error: {results['calibration_error']:.4f}",
        f"mean IoU of single images, percentiles: {shown}",
    ]
    if "sampled_images" in results:
        lines.append(f"percentiles and scores by label are of a sample of {results['sampled_images']} images")
    for group, scores in results["groups"].items():
        columns = [key for key in next(iter(scores.values())) if key != "examples"]
        heads = "".join(f"{key.replace('mean_iou', 'mean IoU').replace('iou_', 'IoU '):>11}" for key in columns)
        lines += ["", f"{group:28}{'examples':>9}{heads}"]
        for name, row in scores.items():
            lines.append(f"{name:28}{row['examples']:9d}" + "".join(f"{row[key]:11.4f}" for key in columns))
    return lines


def _foreground(results: Mapping[str, Any]) -> list[str]:
    """A line with the IoU of foreground versus rest; none if the data set marks no foreground classes."""
    if "foreground" not in results:
        return []
    name, iou = results["foreground"], f"{results['foreground_iou']:.4f}"
    if "borders" in results:
        borders = " and ".join(results["borders"])
        iou += f" with the {borders} as {name}, {results['foreground_iou_without_borders']:.4f} without the {borders}"
    return [f"{name} versus rest, IoU: {iou}"]


def statistics(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation (NaN for a single value), minimum and maximum, by name."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return dict(zip(STATISTICS, (float(np.mean(values)), deviation, min(values), max(values)), strict=True))


def runs_table(results: Mapping[str, Mapping[str, Any]], pooled: Mapping[str, Any] | None = None) -> str:
    """Table of the scores of several runs, such as those of several seeds: a row per run, then mean and spread.

    Args:
      results: content of a results file per run, by run name; all of one split, or of its folds.
      pooled: the scores of all folds together, for a last row.
    """
    rows = {run: _row(scores) for run, scores in results.items()}
    columns = list(next(iter(rows.values())))
    over_runs = [statistics([row[column] for row in rows.values()]) for column in columns]
    widths = [max(11, len(column) + 2) for column in columns]
    first = max(len(name) for name in [*rows, *STATISTICS]) + 2
    splits = ", ".join(sorted({str(scores["split"]) for scores in results.values()}))
    title = f"{splits}, {len(rows)} runs" if pooled is None else f"{len(rows)} folds"
    lines = [title, f"{'':{first}}{'step':>8}" + _cells(columns, widths)]
    for run, row in rows.items():
        cells = _cells([f"{value:.4f}" for value in row.values()], widths)
        lines.append(f"{run:{first}}{results[run]['step']:>8}" + cells)
    for name in STATISTICS:
        lines.append(f"{name:{first}}{'':8}" + _cells([f"{each[name]:.4f}" for each in over_runs], widths))
    if pooled is not None:
        row = _row(pooled)
        lines.append(f"{'pooled':{first}}{'':8}" + _cells([f"{row.get(name, np.nan):.4f}" for name in columns], widths))
    return "\n".join(lines)


def _row(scores: Mapping[str, Any]) -> dict[str, float]:
    return {**_overall_scores(scores), **{f"IoU {name}": value for name, value in scores["iou"].items()}}


def _cells(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
