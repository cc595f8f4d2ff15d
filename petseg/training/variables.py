"""The variables, besides weights, of a loop over replicas. Make them inside ``strategy.scope()``."""

from typing import Any

import keras
import tensorflow as tf


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
    """The variables of batch norms in training mode, in a layer or model, that a forward pass changes by itself."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return [layer.moving_mean, layer.moving_variance] if layer.trainable else []
    return [variable for part in getattr(layer, "layers", []) for variable in moving_statistics(part)]
