"""A fixed sample of a split's examples, which a seed decides."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.data.decoding import Examples, Gather
from petseg.data.record_files import Decoded

STREAM = 2**32  # beside the seed, where the order of training has the number of an epoch


class ChosenItems(Sequence[str]):
    """Some items of a sequence, which are read when they are indexed."""

    def __init__(self, items: Sequence[str], ids: np.ndarray):
        self._items, self._ids = items, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, key: Any) -> Any:
        ids = self._ids[key]
        return self._items[int(ids)] if ids.ndim == 0 else tuple(self._items[int(i)] for i in ids)


def sample(examples: Examples, count: int, seed: int) -> Examples:
    """A view of `count` examples of a split, in their order; of all, if `count` is 0 or there are no more.

    Which ones depends on the seed, the count and the size of the split, and on nothing else. Examples in memory are
    copied, so that the others need not stay there; of any others nothing is read.
    """
    if not 0 < count < len(examples):
        return examples
    ids = chosen_ids(len(examples), count, seed)
    images, masks = examples.images, examples.masks
    in_memory = examples.gather is None
    return dataclasses.replace(
        examples,
        images=images[ids] if in_memory else Decoded(lambda rows: images[ids[rows]], (count, *images.shape[1:])),
        masks=masks[ids] if in_memory else Decoded(lambda rows: masks[ids[rows]], (count, *masks.shape[1:])),
        names=ChosenItems(examples.names, ids),
        groups={name: ChosenItems(members, ids) for name, members in examples.groups.items()},
        gather=_gather_of(examples.gather, ids),
        gather_anywhere=_gather_of(examples.gather_anywhere, ids),
        origin=f"{examples.origin}, {count} examples of seed {seed}",
    )


def chosen_ids(num_examples: int, count: int, seed: int) -> np.ndarray:
    """The places of the examples in the split, int64 [count], rising."""
    places = tf.random.experimental.index_shuffle(
        tf.range(count, dtype=tf.int64),
        seed=tf.constant([seed, STREAM], tf.int64),
        max_index=tf.constant(num_examples - 1, tf.int64),
    )
    return np.sort(places.numpy())


def _gather_of(gather: Gather | None, ids: np.ndarray) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]] | None:
    if gather is None:
        return None
    return lambda rows: gather(tf.gather(tf.constant(ids), rows))
