"""What the scores of several runs of one recipe say together: mean and spread over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

STATISTICS = ("mean", "standard deviation", "lowest", "highest")


def statistics(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (of a sample; NaN of a single value), lowest and highest."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return dict(zip(STATISTICS, (float(np.mean(values)), deviation, min(values), max(values)), strict=True))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores of several runs as text: a row for each run, then a row for each statistic.

    Args:
      results: content of a results file of each run, by the name of the run; all of one split.
    """
    rows = {name: _scores(scores) for name, scores in results.items()}
    columns = list(next(iter(rows.values())))
    over_runs = {column: statistics([row[column] for row in rows.values()]) for column in columns}
    widths = [max(11, len(column) + 2) for column in columns]
    first = max(len(name) for name in [*rows, *STATISTICS]) + 2
    splits = sorted({str(scores["split"]) for scores in results.values()})
    lines = [f"{', '.join(splits)}, {len(rows)} runs"]
    lines.append(f"{'':{first}}{'step':>8}" + _cells(columns, widths))
    for name, row in rows.items():
        lines.append(f"{name:{first}}{results[name]['step']:>8}" + _cells([f"{v:.4f}" for v in row.values()], widths))
    for statistic in STATISTICS:
        values = [over_runs[column][statistic] for column in columns]
        lines.append(f"{statistic:{first}}{'':8}" + _cells([f"{v:.4f}" for v in values], widths))
    return "\n".join(lines)


def _scores(results: Mapping[str, Any]) -> dict[str, float]:
    of_classes = {f"IoU {name}": value for name, value in results["iou"].items()}
    return {"mean IoU": results["mean_iou"], "accuracy": results["accuracy"], **of_classes}


def _cells(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
