"""The variables, besides weights, of a loop over replicas. Make them inside ``strategy.scope()``."""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from petseg.models.layers import InferenceMode


def step_variable(value: Any, dtype: tf.DType) -> tf.Variable:
    """A variable that is assigned outside the replicas, or alike on all of them."""
    return tf.Variable(value, trainable=False, dtype=dtype, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)


def replica_sum(shape: Any, dtype: tf.DType) -> tf.Variable:
    """A sum, from 0, that each replica keeps for itself; read from outside, the sum over the replicas."""
    return tf.Variable(
        tf.zeros(shape, dtype),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def replica_copy(value: Any, dtype: tf.DType) -> tf.Variable:
    """A variable that each replica assigns for itself, all alike; read from outside, the first one's."""
    return tf.Variable(
        value,
        trainable=False,
        dtype=dtype,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def moving_statistics(layer: keras.Layer) -> list[keras.Variable]:
    """The variables that a forward pass in training changes by itself, in a layer or model and all that it is made of.

    These are the floats that a layer keeps beside its weights: the statistics of a batch norm, the vector of a spectral
    normalisation, what a layer of one's own adds with ``trainable=False``. Not of a frozen batch norm, nor of what
    `InferenceMode` holds: these change nothing. Random seeds are no statistics.

    Returns:
      each variable once.
    """
    return list({id(variable): variable for variable in _moving_statistics(layer)}.values())


def _moving_statistics(layer: keras.Layer) -> Iterator[keras.Variable]:
    if isinstance(layer, InferenceMode):
        return
    if layer.trainable or not isinstance(layer, keras.layers.BatchNormalization):
        yield from (v for v in layer._non_trainable_variables if tf.as_dtype(v.dtype).is_floating)
    # Keras has no public way to the layers of a layer that is not a model.
    for part in layer._flatten_layers(include_self=False, recursive=False):
        yield from _moving_statistics(part)
