"""Optimizers, learning-rate schedules, and the loss scale of float16."""

from collections.abc import Callable

import keras
import tensorflow as tf

from petseg.variables import step_variable

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


class LossScale(tf.Module):
    """Dynamic loss scaling (Micikevicius et al. 2018): keeps small float16 gradients from becoming 0.

    The loss is multiplied by the scale, the reduced gradients are divided by it. A step whose gradients overflowed is
    skipped and halves the scale, down to 1; many finite steps in a row double it. Make it inside ``strategy.scope()``.

    Not a `keras.optimizers.LossScaleOptimizer`, which decides by one replica's gradients before they are reduced, and
    into which no float32 checkpoint restores. This object is part of every checkpoint, whatever the precision.

    Attributes:
      skipped_steps: int64 variable, steps skipped since the start of the run.
    """

    def __init__(self, *, initial: float, growth_interval: int, dynamic: bool):
        """Makes one.

        Args:
          initial: the scale of the first step.
          growth_interval: finite steps after which the scale doubles.
          dynamic: whether it is in use; else the scale is 1, and what a checkpoint holds stays as it is.
        """
        super().__init__()
        self._growth_interval, self._dynamic = growth_interval, dynamic
        self._scale = step_variable(initial, tf.float32)
        self._finite_steps = step_variable(0, tf.int64)
        self.skipped_steps = step_variable(0, tf.int64)

    def value(self) -> tf.Tensor:
        """The scale, a float32 scalar."""
        return tf.identity(self._scale) if self._dynamic else tf.constant(1.0)

    def update(self, finite: tf.Tensor) -> tf.Tensor:
        """Takes note of a step, outside the replicas.

        Args:
          finite: bool scalar, whether the reduced loss and gradients were.

        Returns:
          bool scalar: whether the scale can account for what it was told. A step that is not finite at scale 1 has
          another cause than the scale.
        """
        self.skipped_steps.assign_add(tf.cast(~finite, tf.int64))
        if not self._dynamic:
            return finite
        explained = finite | (self._scale > 1.0)
        finite_steps = tf.where(finite, self._finite_steps + 1, 0)
        grows = finite_steps >= self._growth_interval
        factor = tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5)
        self._finite_steps.assign(tf.where(grows, tf.zeros_like(finite_steps), finite_steps))
        self._scale.assign(tf.maximum(self._scale * factor, 1.0))
        return explained
