"""Groups of examples that stay together, and the folds of cross-validation that they make."""

import collections
import functools
import hashlib
import heapq
import re

import numpy as np

from petseg.config import DataConfig
from petseg.data.folders.file_patterns import Pattern
from petseg.errors import DataError


def group_of(name: str, config: DataConfig) -> str:
    """The group of an example: what `{group}` of --group_files matches in its name.

    Without that flag, the name; pages of one file are one group. Raises DataError if the pattern does not match.
    """
    if config.pages == "examples":
        name = re.sub(r"#\d+$", "", name)
    if not config.group_files:
        return name
    group = _pattern(config.group_files).group_in(name)
    if not group:
        raise DataError(
            f"--group_files={config.group_files}: does not match {name}; must match the name of each example, such as "
            "'{group}_*' (a file name) or 'images/{split}/{group}/*' (a whole path)"
        )
    return group


@functools.cache
def _pattern(text: str) -> Pattern:
    return Pattern(text, "--group_files")


@functools.lru_cache(maxsize=4)
def fold_numbers(groups: tuple[str, ...], count: int, seed: int) -> np.ndarray:
    """The fold of each example, int64 [N], 1 to `count`: all of a group are in one, and folds are of similar size.

    The largest group goes to the smallest fold, and so on; groups of one size come in the order of a hash. So it is a
    function of names, group sizes, count and seed, not of the order of examples.

    Raises DataError if there are fewer groups than folds.
    """
    sizes = collections.Counter(groups)
    if len(sizes) < count:
        raise DataError(
            f"its {len(groups)} examples are {len(sizes)} group{'s' * (len(sizes) > 1)} "
            f"({', '.join(sorted(sizes)[:3])}{', ...' if len(sizes) > 3 else ''}); must be at least {count}, one for "
            "each fold"
        )
    smallest_first = [(0, number) for number in range(1, count + 1)]
    number_of = {}
    for group in sorted(sizes, key=lambda group: (-sizes[group], _hash(group, seed))):
        size, number_of[group] = smallest_first[0]
        heapq.heapreplace(smallest_first, (size + sizes[group], number_of[group]))
    numbers = np.array([number_of[group] for group in groups])
    numbers.flags.writeable = False  # shared by all callers
    return numbers


def _hash(group: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed} {group}".encode()).digest()
