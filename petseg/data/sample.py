"""A fixed sample of a split's examples, which a seed decides. Nothing here is as large as the split."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from petseg.data.on_demand import Decoded, Groups, Names

if TYPE_CHECKING:
    from petseg.data.decoding import Examples, Gather

STREAM = 2**32  # beside the seed, where the order of training has the number of an epoch


def positions(num_examples: int, count: int, seed: int) -> np.ndarray:
    """Which examples are the sample: a function of these three numbers; each sample is as likely as any other.

    Args:
      num_examples: number of examples in the split.
      count: number of examples in the sample, at most as many.
      seed: seed of the drawing.

    Returns:
      int64 [count], their positions in the split, rising, none twice.
    """
    # Mixed, for `index_shuffle` looks at the lowest eight bits of each word alone where examples are few.
    words = np.random.SeedSequence([seed, STREAM]).generate_state(2).astype(np.int64)
    with tf.device("cpu:0"):
        drawn = tf.random.experimental.index_shuffle(
            tf.range(count, dtype=tf.int64),
            seed=tf.constant(words),
            max_index=tf.constant(num_examples - 1, tf.int64),
        )
    return np.sort(drawn.numpy())


def sample(examples: "Examples", count: int, seed: int) -> "Examples":
    """A view of `count` examples of a split, in their order; of all, if `count` is 0 or there are no more.

    Examples in memory are copied, so that the others need not stay there; of any others nothing is read. Not for
    training, which has an order of its own.
    """
    if not 0 < count < len(examples):
        return examples
    ids = positions(len(examples), count, seed)
    in_memory = examples.gather is None
    chosen: dict[str, Any] = {
        "images": examples.images[ids] if in_memory else _chosen_pictures(examples.images, ids),
        "masks": examples.masks[ids] if in_memory else _chosen_pictures(examples.masks, ids),
        "names": _ChosenItems(examples.names, ids),
        "groups": _chosen_groups(examples.groups, ids),
        "gather": _through(ids, examples.gather),
        "gather_anywhere": _through(ids, examples.gather_anywhere),
        "origin": f"{examples.origin}, {count} of {len(examples)} by seed {seed}",
        "sample": {"seed": seed, "of": len(examples)},
    }
    return dataclasses.replace(examples, **chosen)


def only(dataset: tf.data.Dataset, ids: np.ndarray) -> tf.data.Dataset:
    """The elements of a data set at some positions, int64 [K], rising; what stands after the last is not read."""
    wanted = tf.constant(ids, tf.int64)

    @tf.autograph.experimental.do_not_convert
    def is_wanted(position: tf.Tensor, _: Any) -> tf.Tensor:
        return tf.gather(wanted, tf.searchsorted(wanted, position[None])[0]) == position

    numbered = dataset.take(int(ids[-1]) + 1).enumerate().filter(is_wanted)
    return numbered.map(tf.autograph.experimental.do_not_convert(lambda _, element: element))


class _ChosenItems(Sequence[str]):
    """Texts at some positions of a sequence, which are read when they are indexed."""

    def __init__(self, items: Sequence[str], ids: np.ndarray):
        self._items, self._ids = items, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return tuple(_ChosenItems(self._items, self._ids[key]))
        return self._items[int(self._ids[key])]

    def __iter__(self) -> Iterator[str]:
        ids = self._ids.tolist()
        return self._items.of(ids) if isinstance(self._items, Names) else (self._items[i] for i in ids)

    def __eq__(self, other: object) -> bool:
        mine = self._items
        if isinstance(other, _ChosenItems) and isinstance(mine, Names) and mine.are_those_of(other._items):
            return np.array_equal(self._ids, other._ids)
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]


class _ChosenGroups(Mapping[str, Sequence[str]]):
    """The labels of some of a split's examples, which are read when they are asked for."""

    def __init__(self, groups: Mapping[str, Sequence[str]], ids: np.ndarray):
        self._groups, self._ids = groups, ids

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __getitem__(self, key: str) -> Sequence[str]:
        return _ChosenItems(self._groups[key], self._ids)


def _chosen_pictures(pictures: Any, ids: np.ndarray) -> Decoded:
    return Decoded(lambda rows: pictures[ids[rows]], (len(ids), *pictures.shape[1:]))


def _chosen_groups(groups: Mapping[str, Sequence[str]], ids: np.ndarray) -> Mapping[str, Sequence[str]]:
    return groups.of(ids) if isinstance(groups, Groups) else _ChosenGroups(groups, ids)


def _through(ids: np.ndarray, gather: "Gather | None") -> "Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]] | None":
    return None if gather is None else lambda rows: gather(tf.gather(tf.constant(ids), rows))
