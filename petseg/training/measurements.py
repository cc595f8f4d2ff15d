"""Scalars measured in a training step: named sums that add up on the device until they are read.

A new scalar is a line in `Trainer._measure`; a description of it here is optional.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from petseg.training.variables import step_variable

DESCRIPTIONS = {
    # Means over the steps that changed the weights.
    "loss": "Loss of --loss with pixel weights, over the number of valid pixels or the sum of their weights.",
    "gradient_norm": "Global norm of the gradients before clipping, mean over the interval.",
    "update_ratio": "Global norm of the interval's last update over that of the weights; 1e-3 is usual.",
    # Values at the time of the reading.
    "learning_rate": "Learning rate of the last step; that of the decoder, if the encoder has its own.",
    "weight_norm": "Global norm of the trained weights.",
    "loss_scale": "Factor of the loss against float16 underflow; 1 in other precisions.",
    "skipped_steps": "Steps since the start of the run that were skipped because a gradient was not finite.",
}
# The sum that divides a scalar's sum, if it is not the number of steps that changed the weights.
DENOMINATORS = {"loss": "denominator", "update_ratio": "measured_updates"}


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Measurements over the steps since the last `Trainer.pop_measurements`."""

    steps: int  # number of these steps
    scalars: Mapping[str, float]  # means and values by name; a mean over no step is NaN
    confusion_matrix: np.ndarray  # int64 [C, C], pixels by true (rows) and predicted class (columns)


class MeasuredSums(tf.Module):
    """The sums since the last reading, as variables that a checkpoint stores by name.

    Create it inside ``strategy.scope()``.

    Attributes:
      nonfinite_steps: int64 variable that readings do not reset: steps since the start of the run that were not finite
        for another reason than the loss scale.
    """

    def __init__(self, names: Iterable[str], num_classes: int):
        """Starts all sums at 0."""
        super().__init__()
        self._measured = frozenset(names)  # no list or tuple: these would become part of the checkpoint
        self.nonfinite_steps = step_variable(0, tf.int64)
        self.steps, self.finite_steps = step_variable(0, tf.int64), step_variable(0, tf.int64)
        self.confusion = step_variable(tf.zeros([num_classes] * 2, tf.int64), tf.int64)
        for name in sorted(self._measured):
            setattr(self, name, step_variable(0.0, tf.float32))

    def add(self, measured: Mapping[str, tf.Tensor]) -> None:
        """Adds the scalars of a step that changed the weights, float32, outside the replicas."""
        for name, value in measured.items():
            getattr(self, name).assign_add(value)
        self.finite_steps.assign_add(1)

    def means(self) -> dict[str, float]:
        """The mean of each scalar since the last reading; NaN if there was no step."""
        means = {}
        for name in sorted(self._measured - {*DENOMINATORS.values()}):
            divisor = float(getattr(self, DENOMINATORS.get(name, "finite_steps")).numpy())
            means[name] = float(getattr(self, name).numpy()) / divisor if divisor else float("nan")
        return means

    def clear(self) -> None:
        for _, variable in self._sums():
            variable.assign(tf.zeros_like(variable))

    def load_by_name(self, saved: Mapping[str, np.ndarray]) -> None:
        """Loads sums that were saved by name, perhaps by another version; missing ones start at 0."""
        for name, variable in (("nonfinite_steps", self.nonfinite_steps), *self._sums()):
            is_divided = DENOMINATORS.get(name, name) in saved  # else it was summed over other steps
            value = saved.get(name) if is_divided else None
            fits = value is not None and tuple(value.shape) == tuple(variable.shape)
            variable.assign(tf.cast(value, variable.dtype) if fits else tf.zeros_like(variable))

    def _sums(self) -> Iterator[tuple[str, tf.Variable]]:
        for name in ("steps", "finite_steps", "confusion", *sorted(self._measured)):
            yield name, getattr(self, name)
