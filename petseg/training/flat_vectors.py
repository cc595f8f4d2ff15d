"""Weights laid end to end in one vector, so that a step takes a few operations instead of a few for each weight."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from petseg.training.variables import assign_on_replica


class Layout:
    """Layout of tensors in a vector: flattened and concatenated."""

    def __init__(self, shapes: Sequence[Any]):
        self._shapes = [tuple(shape) for shape in shapes]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        self.size = sum(self._sizes)

    def join(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        """The vector of tensors of one dtype."""
        return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)

    def split(self, vector: tf.Tensor) -> list[tf.Tensor]:
        """The tensors of a vector."""
        parts = tf.split(vector, self._sizes)
        return [tf.reshape(part, shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def stored(self, variable: tf.Variable) -> list["StoredSlice"]:
        """The tensors of a flat variable as a checkpoint stores them."""
        firsts = [sum(self._sizes[:i]) for i in range(len(self._sizes))]
        return [StoredSlice(variable, first, shape) for first, shape in zip(firsts, self._shapes, strict=True)]


class StoredSlice(tf.__internal__.tracking.Trackable):
    """A slice of a flat variable that checkpoints store like a variable of its own.

    So a checkpoint does not depend on how weights are joined. Create it inside ``strategy.scope()``.
    """

    def __init__(self, variable: tf.Variable, first: int, shape: tuple[int, ...]):
        self._copies = tf.distribute.get_strategy().experimental_local_results(variable)
        self.vector = self._copies[0]
        self._shape = shape
        self._range = slice(first, first + math.prod(shape))

    def of(self, vector: np.ndarray) -> np.ndarray:
        """The stored tensor of a value of `vector`."""
        return vector[self._range].reshape(self._shape)

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {"VARIABLE_VALUE": tf.reshape(self.vector[self._range], self._shape)}

    def _restore_from_tensors(self, restored: dict[str, tf.Tensor]) -> None:
        for copy in self._copies:
            copy[self._range].assign(tf.reshape(restored["VARIABLE_VALUE"], [-1]))
            # Assigning a slice makes every later read copy the whole vector.
            tf.raw_ops.DisableCopyOnRead(resource=copy.handle)


class Kind(NamedTuple):
    """Properties that the weights of one flat variable share."""

    dtype: str
    is_exempt: bool  # whether they are exempt from weight decay
    bucket: int  # 0 for the weights whose gradients the backward pass computes first


def buckets(weights: Sequence[keras.Variable], bucket_bytes: float) -> list[int]:
    """All-reduce bucket of each weight, in the order of the forward pass: 0 for the last `bucket_bytes`, and so on."""
    sizes = [math.prod(weight.shape) * tf.as_dtype(weight.dtype).size for weight in weights]
    after = [sum(sizes[i + 1 :]) for i in range(len(sizes))]
    return [int(size / bucket_bytes) if bucket_bytes else 0 for size in after]


class FlatWeights:
    """Weights in one flat variable for each of their kinds.

    Args:
      kinds: a kind for each weight; weights of one kind have one dtype and one bucket.

    Attributes:
      variables: the flat variables, sorted by bucket, else in the order in which the kinds occur first.
    """

    def __init__(self, weights: Sequence[keras.Variable], kinds: Sequence[Kind]):
        self._weights = weights
        self.kinds = sorted(dict.fromkeys(kinds), key=lambda kind: kind.bucket)
        self._positions = [[i for i, kind in enumerate(kinds) if kind == one] for one in self.kinds]
        self._layouts = [Layout([weights[i].shape for i in positions]) for positions in self._positions]
        self.variables = [
            keras.Variable(tf.zeros([layout.size]), dtype=weights[first].dtype, name="flat_weights")
            for layout, (first, *_) in zip(self._layouts, self._positions, strict=True)
        ]

    def join(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """A vector for each variable from a tensor for each weight."""
        parts = zip(self._layouts, self._positions, strict=True)
        return [layout.join([tensors[i] for i in positions]) for layout, positions in parts]

    def split(self, vectors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """A tensor for each weight from a vector for each variable."""
        return self._by_weight([layout.split(v) for layout, v in zip(self._layouts, vectors, strict=True)])

    def stored_slices(self, variables: Sequence[tf.Variable]) -> list[StoredSlice]:
        """What a checkpoint stores for each weight, of a variable like each of the flat ones."""
        return self._by_weight([layout.stored(v.value) for layout, v in zip(self._layouts, variables, strict=True)])

    def load(self) -> None:
        """Copies the weights to the flat variables, on a replica."""
        assign_on_replica(self.variables, self.join([weight.value for weight in self._weights]))

    def store(self) -> None:
        """Copies the flat variables to the weights, on a replica, under the constraints of the weights."""
        values = zip(self._weights, self.split([variable.value for variable in self.variables]), strict=True)
        assign_on_replica(self._weights, [w.constraint(value) if w.constraint else value for w, value in values])

    def _by_weight(self, parts: Sequence[Sequence[Any]]) -> list[Any]:
        of_position = {
            i: value
            for positions, values in zip(self._positions, parts, strict=True)
            for i, value in zip(positions, values, strict=True)
        }
        return [of_position[i] for i in range(len(self._weights))]
