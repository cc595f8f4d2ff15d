"""Names of folds for cross-validation: `train@fold1of5`, and the rest of the split, `train@without_fold1of5`."""

import re
from typing import NamedTuple

from petseg.errors import ConfigError

MARK = "@"  # begins a fold's suffix
_NAME = re.compile(r"(?P<base>[^@]+)@(?P<without>without_)?fold(?P<number>\d{1,6})of(?P<total>\d{1,6})", re.ASCII)


class Fold(NamedTuple):
    """One fold of a split, or all others."""

    base: str  # the split, or a sum of splits and slices
    number: int  # 1 to `total`
    total: int  # number of folds, at least 2
    without: bool = False  # whether it is all other folds instead

    def __str__(self) -> str:
        return f"{self.base}{MARK}{'without_' * self.without}fold{self.number}of{self.total}"


def parse(split: str) -> Fold | None:
    """The fold that a split is; None for a split without the mark of folds. Raises ConfigError for any other text."""
    if MARK not in split:
        return None
    match = _NAME.fullmatch(split)
    number, total = (int(match["number"]), int(match["total"])) if match else (0, 0)
    if match is None or total < 2 or not 1 <= number <= total:
        raise ConfigError(
            f"{split}: must be SPLIT@foldKofN or SPLIT@without_foldKofN, with N of at least 2 and K from 1 to N"
        )
    return Fold(match["base"], number, total, bool(match["without"]))
