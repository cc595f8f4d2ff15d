"""Progress bars of work that is not training, whose bar is `reporting.progress`."""

import logging
from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def progress_bar(
    items: Iterable[T] | None, logger: logging.Logger, *, what: str | None = None, unit: str, total: int | None = None
) -> "tqdm[T]":
    """A bar on a terminal, or in a notebook; none elsewhere, nor where a logger is quiet.

    Args:
      items: what it goes through; None if it is told of each by `update`.
      logger: the logger of who works.
      what: what is done, in words.
      unit: what the items are, in words.
      total: the number of items, where these have no length.
    """
    hidden = None if logger.isEnabledFor(logging.INFO) else True  # None: tqdm asks for a terminal
    return tqdm(items, desc=what, unit=f" {unit}", total=total, disable=hidden, leave=False)
