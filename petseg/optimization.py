"""Optimizers and learning-rate schedules."""

from collections.abc import Callable

import keras
import tensorflow as tf

LearningRate = Callable[[tf.Tensor], tf.Tensor]


def make_optimizer(name: str, variables: list[keras.Variable]) -> keras.optimizers.Optimizer:
    """A built optimizer, so that a checkpoint finds all its slots.

    Its gradients have been reduced over the replicas before it sees them, hence its own reduction is switched off. Its
    learning rate is set from the clock at every step; the initial one is never used.

    Args:
      name: "adam" (Kingma and Ba 2015), "adamw" (Loshchilov and Hutter 2019) or "sgd" (momentum 0.9).
      variables: the trainable variables of the model.

    Raises:
      ValueError: if there is no optimizer of that name.
    """
    if name == "adam":
        optimizer = keras.optimizers.Adam()
    elif name == "adamw":
        optimizer = keras.optimizers.AdamW()
    elif name == "sgd":
        optimizer = keras.optimizers.SGD(momentum=0.9)
    else:
        raise ValueError(f"no optimizer {name!r}; there are 'adam', 'adamw' and 'sgd'")
    optimizer.build(variables)
    optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    return optimizer


def learning_rate_schedule(name: str, peak: float, total_steps: int) -> LearningRate:
    """A schedule: step (int64 scalar) -> learning rate (float32 scalar).

    Args:
      name: "constant", or "cosine": from the peak to 0 along half a cosine (Loshchilov and Hutter 2017).
      peak: the highest learning rate.
      total_steps: the length of the run.

    Raises:
      ValueError: if there is no schedule of that name.
    """
    if name == "constant":
        return lambda step: tf.constant(peak, tf.float32)
    if name == "cosine":
        return keras.optimizers.schedules.CosineDecay(peak, total_steps)
    raise ValueError(f"no learning-rate schedule {name!r}; there are 'constant' and 'cosine'")
