"""The loss scale of float16, in which layers compute or gradients travel."""

import tensorflow as tf

from petseg.config import ComputeConfig
from petseg.training.variables import step_variable


class LossScale(tf.Module):
    """Dynamic loss scaling (Micikevicius et al. 2018): keeps small float16 gradients from becoming 0.

    The loss is multiplied by the scale, the reduced gradients are divided by it. A step whose gradients overflowed is
    skipped and halves the scale, down to 1; many finite steps in a row double it. Make it inside ``strategy.scope()``.

    Not a `keras.optimizers.LossScaleOptimizer`, which decides by one replica's gradients before they are reduced, and
    into which no float32 checkpoint restores. This object is part of every checkpoint, whatever the precision.

    Attributes:
      skipped_steps: int64 variable, steps skipped since the start of the run.
    """

    def __init__(self, config: ComputeConfig):
        """Starts at the scale of the flags.

        Args:
          config: precision, first scale and how fast it grows. Where neither layers nor the all-reduce use float16,
            the scale is 1, and what a checkpoint holds stays as it is.
        """
        super().__init__()
        self._growth_interval = config.loss_scale_growth_interval
        self._dynamic = config.precision == "mixed_float16" or config.all_reduce_dtype == "float16"
        self._scale = step_variable(config.initial_loss_scale, tf.float32)
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
        accounted_for = finite | (self._scale > 1.0)
        finite_steps = tf.where(finite, self._finite_steps + 1, 0)
        grows = finite_steps >= self._growth_interval
        factor = tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5)
        self._finite_steps.assign(tf.where(grows, tf.zeros_like(finite_steps), finite_steps))
        self._scale.assign(tf.maximum(self._scale * factor, 1.0))
        return accounted_for
