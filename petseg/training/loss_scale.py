"""Dynamic loss scaling for float16 layers or float16 gradients in the all-reduce."""

import tensorflow as tf

from petseg.config import ComputeConfig
from petseg.training.variables import step_variable


class LossScale(tf.Module):
    """Dynamic loss scaling (Micikevicius et al. 2018): keeps small float16 gradients from becoming 0.

    The loss is multiplied by the scale, the reduced gradients are divided by it. A step whose gradients overflow is
    skipped and halves the scale, down to 1; a number of finite steps in a row doubles it. Create it inside
    ``strategy.scope()``.

    Not a `keras.optimizers.LossScaleOptimizer`: that checks one replica's gradients before the all-reduce, and float32
    checkpoints don't restore into it. This object is part of every checkpoint, whatever the precision.

    Attributes:
      skipped_steps: int64 variable, steps skipped since the start of the run.
    """

    def __init__(self, config: ComputeConfig):
        """Starts at `initial_loss_scale`; the scale in use is 1 if neither layers nor the all-reduce use float16."""
        super().__init__()
        self._growth_interval = config.loss_scale_growth_interval
        self._dynamic = config.precision == "mixed_float16" or config.all_reduce_dtype == "float16"
        self._scale = step_variable(config.initial_loss_scale, tf.float32)
        self._finite_steps = step_variable(0, tf.int64)
        self.skipped_steps = step_variable(0, tf.int64)

    def value(self) -> tf.Tensor:
        """The current scale, a float32 scalar."""
        return tf.identity(self._scale) if self._dynamic else tf.constant(1.0)

    def update(self, finite: tf.Tensor) -> tf.Tensor:
        """Adjusts the scale after a step, outside the replicas.

        Args:
          finite: bool scalar, whether the reduced loss and gradients were finite.

        Returns:
          bool scalar, True if the step was finite or the scale can explain why not; False if the scale was 1.
        """
        self.skipped_steps.assign_add(tf.cast(~finite, tf.int64))
        if not self._dynamic:
            return finite
        is_explained = finite | (self._scale > 1.0)
        finite_steps = tf.where(finite, self._finite_steps + 1, 0)
        grows = finite_steps >= self._growth_interval
        factor = tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5)
        self._finite_steps.assign(tf.where(grows, tf.zeros_like(finite_steps), finite_steps))
        self._scale.assign(tf.maximum(self._scale * factor, 1.0))
        return is_explained
