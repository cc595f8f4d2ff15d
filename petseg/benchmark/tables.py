"""Cells and rows of Markdown tables."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def heading(*titles: str) -> list[str]:
    """The first two rows of a table."""
    return [row(*titles), row(*["---"] * len(titles))]


def table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    """The lines of a table: the format of each column's cells, by its title. Times are also there as `NAME_ms`."""
    lines = heading(*columns)
    for each in rows:
        values = {**each, **{f"{name}_ms": 1e3 * value for name, value in each.items() if isinstance(value, float)}}
        lines.append(row(*(cell.format_map(values) for cell in columns.values())))
    return lines


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median of several measurements, with the lowest and the highest."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
