"""The interface of a split of a data set: examples by id, decoded and resized.

The backends are in `petseg.data.backends`. A data source of your own is a subclass with `__len__` and `fetch`.
"""

import abc
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from petseg.classes import IGNORED, Classes

COUNTED_AT_ONCE = 64


class Fetched(NamedTuple):
    """Examples of a batch.

    Attributes:
      image: uint8 [K, H, W, 3].
      mask: uint8 [K, H, W, 1], class ids, or IGNORED.
      usable: bool [K]; a bad example is a grey image whose pixels are all IGNORED.
    """

    image: tf.Tensor
    mask: tf.Tensor
    usable: tf.Tensor


class BatchPosition(NamedTuple):
    """A place in training, of which example ids and random crops are a function.

    Attributes:
      step: int64 scalar.
      positions: int64 [K], positions in the global batch.
      batch_size: global batch size.
      seed: seed of the run.
      order_version: `version` of `example_order.example_ids`; None: the newest.
    """

    step: tf.Tensor
    positions: tf.Tensor
    batch_size: int
    seed: int
    order_version: int | None = None


Fetch = Callable[[tf.Tensor], Fetched]


class Examples(abc.ABC):
    """A split, decoded and resized; example ids are 0 to N - 1.

    Attributes:
      classes: the classes.
      names: N names for logs and result files: file names where the data set has them, else `<split>/<position>`.
      groups: for each class label in which examples differ, such as `species`, its value for each of the N.
      origin: data set with config and version, and split: `oxford_iiit_pet/4.0.0, test`.
      sampling: `seed` and `of`, the size of the split, if this is a random sample of it; else empty.
      fetch_portable: like `fetch`, as a graph that a data service in another process can run; None if there is none.
    """

    classes: Classes
    names: Sequence[str]
    groups: Mapping[str, Sequence[str]] = {}
    origin: str = ""
    sampling: Mapping[str, int] = {}
    fetch_portable: Fetch | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of examples N."""

    @abc.abstractmethod
    def fetch(self, ids: tf.Tensor) -> Fetched:
        """Examples by id, int64 [K], as a graph of this process; the same ids always give the same pixels."""

    def batch(self, ids: tf.Tensor, at: BatchPosition, *, portable: bool = False) -> Fetched:
        """Examples as training sees them at a place of a batch, as a graph; with `portable`, one for a data service."""
        fetch = self.fetch_portable if portable and self.fetch_portable is not None else self.fetch
        return fetch(ids)

    def read(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [K, H, W, 3] and masks uint8 [K, H, W, 1] of some examples, now.

        Raises:
          DataError: if one of them is bad.
        """
        with tf.device("cpu:0"):
            fetched = self.fetch(tf.constant(np.asarray(ids, np.int64)))
        for i in np.asarray(ids)[~fetched.usable.numpy()].tolist():
            self.check_example(i)
        return fetched.image.numpy(), fetched.mask.numpy()

    def masks_to_count(self) -> Iterator[np.ndarray]:
        """Masks by which class frequencies are counted, uint8 [k, H, W, 1] at a time."""
        for first in range(0, len(self), COUNTED_AT_ONCE):
            yield self.read(range(first, min(first + COUNTED_AT_ONCE, len(self))))[1]

    def has_labels(self) -> bool:
        """Whether a pixel of any mask is in a class; reads masks until one has such a pixel."""
        first, count = 0, 1
        while first < len(self):
            last = min(first + count, len(self))
            if (self.read(range(first, last))[1] != IGNORED).any():
                return True
            first, count = last, min(2 * count, COUNTED_AT_ONCE)
        return False

    def check(self) -> None:  # noqa: B027 (most sources have nothing to check)
        """Raises DataError if files from which examples are read have changed."""

    def check_example(self, i: int) -> None:  # noqa: B027
        """Raises DataError, which names its file, if an example is bad."""

    def names_of(self, ids: Sequence[int]) -> list[str]:
        """Names of some examples."""
        return [self.names[i] for i in ids]

    def groups_of(self, ids: Sequence[int]) -> Mapping[str, Sequence[str]]:
        """The class labels of some examples."""
        return {key: [labels[i] for i in ids] for key, labels in self.groups.items()}

    def subset(self, ids: np.ndarray) -> "Examples":
        """Some of the examples, int64 [K], which get the ids 0 to K - 1."""
        return Subset(self, ids)


class Subset(Examples):
    """Some examples of a split; reads nothing before it is asked.

    Args:
      examples: the split.
      ids: int64 [K], their ids in it.
    """

    def __init__(self, examples: Examples, ids: np.ndarray):
        self._examples, self._ids = examples, ids
        self.classes, self.origin = examples.classes, examples.origin
        if (fetch_portable := examples.fetch_portable) is not None:
            self.fetch_portable = lambda chosen: fetch_portable(self._in_split(chosen))

    def __len__(self) -> int:
        return len(self._ids)

    @functools.cached_property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        return self._examples.names_of(self._ids.tolist())

    @functools.cached_property
    def groups(self) -> Mapping[str, Sequence[str]]:  # type: ignore[override]
        return self._examples.groups_of(self._ids.tolist())

    def names_of(self, ids: Sequence[int]) -> list[str]:
        return self._examples.names_of(self._ids[list(ids)].tolist())

    def fetch(self, ids: tf.Tensor) -> Fetched:
        return self._examples.fetch(self._in_split(ids))

    def read(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._examples.read(self._ids[np.asarray(ids, np.int64)])

    def check(self) -> None:
        self._examples.check()

    def check_example(self, i: int) -> None:
        self._examples.check_example(int(self._ids[i]))

    def _in_split(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.constant(self._ids), ids)


def all_usable(ids: tf.Tensor) -> tf.Tensor:
    """`Fetched.usable` of examples that were checked before, bool [K]."""
    return tf.ones_like(ids, tf.bool)
