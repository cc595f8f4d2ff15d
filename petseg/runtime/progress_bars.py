"""Progress bars of work other than training (whose bar is `reporting.progress`)."""

import logging
from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def progress_bar(
    items: Iterable[T] | None, logger: logging.Logger, *, what: str | None = None, unit: str, total: int | None = None
) -> "tqdm[T]":
    """Creates a bar on a terminal or in a notebook; hidden elsewhere, and if the logger is quieter than INFO.

    Args:
      items: the items to iterate over; None if the caller advances the bar with `update`.
    """
    hidden = None if logger.isEnabledFor(logging.INFO) else True  # None: tqdm asks for a terminal
    return tqdm(items, desc=what, unit=f" {unit}", total=total, disable=hidden, leave=False)
