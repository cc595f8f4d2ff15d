"""Variables of a training loop over replicas. Create them inside ``strategy.scope()``."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from petseg.models.layers import InferenceMode


def step_variable(value: Any, dtype: tf.DType) -> tf.Variable:
    """A variable that is assigned outside the replicas, or to the same value on all of them."""
    return tf.Variable(value, trainable=False, dtype=dtype, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)


def replica_sum(shape: Any, dtype: tf.DType) -> tf.Variable:
    """A per-replica sum that starts at 0; read outside the replicas, the sum over all of them."""
    return tf.Variable(
        tf.zeros(shape, dtype),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def replica_copy(value: Any, dtype: tf.DType) -> tf.Variable:
    """A per-replica variable with the same value on all of them; read outside the replicas, the first one's."""
    return tf.Variable(
        value,
        trainable=False,
        dtype=dtype,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def moving_statistics(layer: keras.Layer) -> list[keras.Variable]:
    """The float variables that a forward pass in training mode changes, in a layer or model and its nested layers.

    These are the non-trainable variables: statistics of batch norms, vectors of spectral normalisation, variables that
    a custom layer adds with ``trainable=False``. Frozen batch norms and layers inside `InferenceMode` change none;
    random seeds are integers. Returns each variable once, in an order that checkpoints rely on.
    """
    return list({id(variable): variable for variable in _moving_statistics(layer)}.values())


def _moving_statistics(layer: keras.Layer) -> Iterator[keras.Variable]:
    if isinstance(layer, InferenceMode):
        return
    if layer.trainable or not isinstance(layer, keras.layers.BatchNormalization):
        yield from (v for v in layer._non_trainable_variables if tf.as_dtype(v.dtype).is_floating)
    # Keras has no public access to the sublayers of a layer that is not a model.
    for part in layer._flatten_layers(include_self=False, recursive=False):
        yield from _moving_statistics(part)


def assign_on_replica(variables: Sequence[keras.Variable], values: Sequence[tf.Tensor]) -> None:
    """Assigns to a model's or optimizer's variables on a replica; the values must be the same on all of them."""

    def assign(strategy: tf.distribute.Strategy, values: Sequence[Any]) -> None:
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(variable.value, lambda v, new: v.assign(new), args=(value,), group=False)

    # As in Keras's optimizers: a replica alone may not assign to a mirrored variable.
    tf.__internal__.distribute.interim.maybe_merge_call(assign, tf.distribute.get_strategy(), values)
