"""The interface of a split of a data set: examples by id, decoded and resized.

The backends are in `petseg.data.backends`; data sets of user code are in `custom_data`.
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
    """Fetched examples."""

    image: tf.Tensor  # uint8 or uint16 [K, H, W, C], in transport format (`ImageSpec`)
    mask: tf.Tensor  # uint8 [K, H, W, 1], class ids or IGNORED
    usable: tf.Tensor  # bool [K]; False for a bad example, which is a grey image whose pixels are all IGNORED
    # weight maps [K, H, W, 1], uint8, uint16 or float32, not scaled yet (--weight_scale); None without
    weight: tf.Tensor | None = None

    def arrays(self) -> dict[str, tf.Tensor]:
        """Image, mask and weight map, as far as there are any, by name."""
        return {"image": self.image, "mask": self.mask} | ({} if self.weight is None else {"weight": self.weight})

    def moved(self, move: Callable[[tf.Tensor], tf.Tensor]) -> "Fetched":
        """The examples with a function applied to each of their arrays."""
        return Fetched(usable=self.usable, **{name: move(array) for name, array in self.arrays().items()})


class BatchPosition(NamedTuple):
    """Positions in the batch of a step; example ids and random crops are functions of them."""

    step: tf.Tensor  # int64 scalar
    positions: tf.Tensor  # int64 [K], positions in the global batch
    batch_size: int  # global batch size
    seed: int  # seed of the run
    order_version: int | None = None  # `version` of `example_order.example_ids`; None: the newest


Fetch = Callable[[tf.Tensor], Fetched]


class Examples(abc.ABC):
    """A split, decoded and resized; example ids are 0 to N - 1.

    Attributes:
      names: N names for logs and result files: file names if the data set has them, else `<split>/<position>`.
      groups: class labels of whole examples, such as `species`: N values each.
      origin: data set with config and version, and split: `oxford_iiit_pet/4.0.0, test`.
      sampling: for a random sample: `seed`, and `of`, the size of the split; else empty.
      checked: whether all examples were decoded when the split was loaded, so that none can be bad.
      fetch_portable: `fetch` as a graph that a data service in another process can run; None if not supported.
    """

    classes: Classes
    names: Sequence[str]
    groups: Mapping[str, Sequence[str]] = {}
    origin: str = ""
    sampling: Mapping[str, int] = {}
    checked: bool = False
    fetch_portable: Fetch | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples N."""

    @abc.abstractmethod
    def fetch(self, ids: tf.Tensor) -> Fetched:
        """Examples by id, int64 [K], as a graph; deterministic."""

    def batch(self, ids: tf.Tensor, at: BatchPosition, *, portable: bool = False) -> Fetched:
        """Examples of a training batch, as a graph; with `portable`, one that a data service can run."""
        fetch = self.fetch_portable if portable and self.fetch_portable is not None else self.fetch
        return fetch(ids)

    def read(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images [K, H, W, C] and masks uint8 [K, H, W, 1] as arrays; raises DataError for a bad example."""
        with tf.device("cpu:0"):
            fetched = self.fetch(tf.constant(np.asarray(ids, np.int64)))
        for i in np.asarray(ids)[~fetched.usable.numpy()].tolist():
            self.check_example(i)
        return fetched.image.numpy(), fetched.mask.numpy()

    def masks_to_count(self) -> Iterator[np.ndarray]:
        """Masks for counting class frequencies, uint8 [k, H, W, 1] at a time."""
        for first in range(0, len(self), COUNTED_AT_ONCE):
            yield self.read(range(first, min(first + COUNTED_AT_ONCE, len(self))))[1]

    def has_labels(self) -> bool:
        """Whether any mask has a labelled pixel; stops reading at the first one."""
        first, count = 0, 1
        while first < len(self):
            last = min(first + count, len(self))
            if (self.read(range(first, last))[1] != IGNORED).any():
                return True
            first, count = last, min(2 * count, COUNTED_AT_ONCE)
        return False

    def check(self) -> None:  # noqa: B027 (most backends have nothing to check)
        """Raises DataError if files that examples are read from have changed."""

    def check_example(self, i: int) -> None:  # noqa: B027
        """Raises DataError, naming the file, if an example is bad."""

    def names_of(self, ids: Sequence[int]) -> list[str]:
        """Names of examples."""
        return [self.names[i] for i in ids]

    def groups_of(self, ids: Sequence[int]) -> Mapping[str, Sequence[str]]:
        """Class labels of examples."""
        return {key: [labels[i] for i in ids] for key, labels in self.groups.items()}

    def subset(self, ids: np.ndarray) -> "Examples":
        """The examples with some ids, int64 [K], as a split of their own with ids 0 to K - 1."""
        return Subset(self, ids)


class Subset(Examples):
    """A lazy subset of a split: the examples with some ids, int64 [K]."""

    def __init__(self, examples: Examples, ids: np.ndarray):
        self._examples, self._ids = examples, ids
        self.classes, self.origin, self.checked = examples.classes, examples.origin, examples.checked
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
    """`Fetched.usable` of `checked` examples, bool [K]."""
    return tf.ones_like(ids, tf.bool)
