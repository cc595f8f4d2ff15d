"""Mean and spread of the scores of several runs, such as those of one recipe with different seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

STATISTICS = ("mean", "standard deviation", "lowest", "highest")


def statistics(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation (NaN for a single value), minimum and maximum, by name."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return dict(zip(STATISTICS, (float(np.mean(values)), deviation, min(values), max(values)), strict=True))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Text table of the scores of several runs: a row per run, then a row per statistic.

    Args:
      results: content of a results file per run, by run name; all of one split.
    """
    rows = {name: _scores(scores) for name, scores in results.items()}
    columns = list(next(iter(rows.values())))
    over_runs = [statistics([row[column] for row in rows.values()]) for column in columns]
    width = max(len(name) for name in [*rows, *STATISTICS]) + 2

    def line(name: str, step: object, cells: Sequence[str]) -> str:
        texts = (f"{text:>{max(11, len(column) + 2)}}" for text, column in zip(cells, columns, strict=True))
        return f"{name:{width}}{step:>8}" + "".join(texts)

    splits = sorted({str(scores["split"]) for scores in results.values()})
    return "\n".join(
        [
            f"{', '.join(splits)}, {len(rows)} runs",
            line("", "step", columns),
            *(line(name, results[name]["step"], [f"{v:.4f}" for v in row.values()]) for name, row in rows.items()),
            *(line(each, "", [f"{values[each]:.4f}" for values in over_runs]) for each in STATISTICS),
        ]
    )


def _scores(results: Mapping[str, Any]) -> dict[str, float]:
    by_class = {f"IoU {name}": value for name, value in results["iou"].items()}
    return {"mean IoU": results["mean_iou"], "accuracy": results["accuracy"], **by_class}
