"""Examples, and groups of examples, that two splits share."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from petseg.data.catalog import DataSet

SHOWN_NAMES = 3
logger = logging.getLogger(__name__)


class Overlap(NamedTuple):
    """The number of examples that two splits share, and the names of the first few if file contents were compared."""

    examples: int
    names: tuple[str, ...] = ()

    @property
    def listed(self) -> str:
        """The names in brackets after a space; empty without names."""
        return listed(self.names, self.examples)


def warn_of_shared_examples(data_set: "DataSet", train_split: str, eval_split: str) -> None:
    """Warns if examples of the evaluation split are also trained on."""
    shared = data_set.overlap(eval_split, train_split)
    if shared.examples:
        logger.warning(
            "--eval_split=%s: %d of its %d examples are in --train_split=%s too%s; scores, and the choice of the best "
            "checkpoint by them, will be too optimistic",
            eval_split, shared.examples, data_set.num_examples(eval_split), train_split, shared.listed,
        )  # fmt: skip
    if data_set.config.group_files:
        groups = sorted(set(data_set.groups(eval_split)).intersection(data_set.groups(train_split)))
        if groups:
            logger.warning(
                "--eval_split=%s: %d of its groups (--group_files) are in --train_split=%s too%s; scores will be too "
                "optimistic", eval_split, len(groups), train_split, listed(groups[:SHOWN_NAMES], len(groups)),
            )  # fmt: skip


def listed(names: Sequence[str], count: int) -> str:
    """The first few of `count` names in brackets after a space; empty without names."""
    more = ", ..." if count > len(names) else ""
    return f" ({', '.join(names)}{more})" if names else ""
