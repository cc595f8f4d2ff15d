"""Cells and rows of Markdown tables."""

import statistics
from collections.abc import Sequence
from typing import Any


def row(*cells: Any) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def heading(*titles: str) -> list[str]:
    """The first two rows of a Markdown table."""
    return [row(*titles), row(*["---"] * len(titles))]


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median of several measurements, with the lowest and the highest."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
