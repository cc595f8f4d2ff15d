"""Decoded examples in host memory (--cache=memory)."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from petseg.classes import Classes
from petseg.data.examples import COUNTED_AT_ONCE, Examples, Fetched, all_usable

TENSOR_ALIGNMENT = 64  # bytes


class MemoryExamples(Examples):
    """Examples in arrays; tensors share their memory if it is aligned.

    Args:
      images: uint8 or uint16 [N, H, W, C].
      masks: uint8 [N, H, W, 1], class ids or IGNORED.
    """

    checked = True

    def __init__(
        self,
        images: np.ndarray,
        masks: np.ndarray,
        classes: Classes,
        names: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        origin: str = "",
        weights: np.ndarray | None = None,
    ):
        self.weights = weights
        self.images, self.masks, self.classes, self.origin = images, masks, classes, origin
        self.names = tuple(map(str, range(len(images)))) if names is None else tuple(names)
        self.groups = groups or {}

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def _tensors(self) -> Fetched:
        with tf.init_scope():  # eager tensors, even if the first call traces a graph
            weights = None if self.weights is None else _shared_tensor(self.weights)
            return Fetched(_shared_tensor(self.images), _shared_tensor(self.masks), tf.constant(True), weights)

    def fetch(self, ids: tf.Tensor) -> Fetched:
        return self._tensors.moved(lambda array: tf.gather(array, ids))._replace(usable=all_usable(ids))

    def read(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.asarray(ids, np.int64)
        return self.images[ids], self.masks[ids]

    def masks_to_count(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self), COUNTED_AT_ONCE):
            yield self.masks[first : first + COUNTED_AT_ONCE]

    def subset(self, ids: np.ndarray) -> Examples:
        """A copy, so that the memory of the other examples can be freed."""
        names, groups = self.names_of(ids.tolist()), self.groups_of(ids.tolist())
        weights = None if self.weights is None else self.weights[ids]
        return MemoryExamples(*self.read(ids), self.classes, names, groups, self.origin, weights)


def aligned_array(shape: tuple[int, ...], dtype: np.dtype | type = np.uint8) -> np.ndarray:
    """An uninitialised array whose memory tensors can share."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(size + TENSOR_ALIGNMENT, np.uint8)
    first = -buffer.ctypes.data % TENSOR_ALIGNMENT
    return buffer[first : first + size].view(dtype).reshape(shape)


def _shared_tensor(array: np.ndarray) -> tf.Tensor:
    """A tensor on the host that shares an array's memory if its alignment allows, else a copy."""
    if array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % TENSOR_ALIGNMENT == 0:
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    with tf.device("cpu:0"):
        return tf.convert_to_tensor(array)
