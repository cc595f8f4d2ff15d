"""What is measured in a step: named sums, which add up on the device until somebody reads them.

A new scalar needs a description here and a line in `Trainer._measure`.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from petseg.training.variables import step_variable

# Means over the steps that changed the weights; those that a step must report.
MEANS = {
    "loss": "What --loss and the weights make of each pixel, over the number of pixels or their weights.",
    "gradient_norm": "Global norm of the gradients before clipping, mean over the interval.",
    "update_ratio": "Global norm of an update over that of the weights, mean over the interval; 1e-3 is usual.",
}
# How things stand when the sums are read.
STATE = {
    "learning_rate": "Learning rate of the last step; that of the decoder, if the encoder has its own.",
    "weight_norm": "Global norm of the trained weights.",
    "loss_scale": "What the loss is multiplied with against float16 underflow; 1 in other precisions.",
    "skipped_steps": "Steps since the start of the run that changed nothing, for a gradient was not finite.",
}
# What divides a sum, if it is not the number of steps that changed the weights.
DIVISORS = {"loss": "denominator"}
FINITE_STEPS = "finite_steps"


@dataclasses.dataclass(frozen=True)
class Measurements:
    """What the steps since the last `Trainer.pop_measurements` did.

    Attributes:
      steps: number of these steps.
      scalars: `MEANS` and `STATE`, by name; a mean over no step is NaN.
      confusion_matrix: int64 [C, C], pixels by true (rows) and predicted class (columns).
    """

    steps: int
    scalars: Mapping[str, float]
    confusion_matrix: np.ndarray


class MeasuredSums(tf.Module):
    """The sums since the last reading, in variables that a checkpoint can hold by name.

    Make it inside ``strategy.scope()``.

    Attributes:
      nonfinite_steps: int64 variable, which readings leave alone: the steps since the start of the run that were not
        finite for another reason than the loss scale.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.nonfinite_steps = step_variable(0, tf.int64)
        self.steps = step_variable(0, tf.int64)
        self.confusion = step_variable(tf.zeros([num_classes] * 2, tf.int64), tf.int64)
        for name in _names():  # attributes, so that a checkpoint knows each by its name
            setattr(self, name, step_variable(0, tf.int64) if name == FINITE_STEPS else step_variable(0.0, tf.float32))

    def add(self, measured: Mapping[str, tf.Tensor]) -> None:
        """Adds what a step that changed the weights measured, outside the replicas.

        Args:
          measured: a float32 scalar for each of `MEANS`, and for each of their `DIVISORS`.

        Raises:
          ValueError: if one is missing, or has no description.
        """
        described = {*_names()} - {FINITE_STEPS}
        if set(measured) != described:
            raise ValueError(f"measured are {sorted(measured)}, described are {sorted(described)}; must be the same")
        for name, value in measured.items():
            getattr(self, name).assign_add(value)
        getattr(self, FINITE_STEPS).assign_add(1)

    def means(self) -> dict[str, float]:
        """The `MEANS` since the last reading."""
        values = {name: float(getattr(self, name).numpy()) for name in _names()}
        divisors = {name: values[DIVISORS.get(name, FINITE_STEPS)] for name in MEANS}
        return {name: values[name] / divisors[name] if divisors[name] else float("nan") for name in MEANS}

    def clear(self) -> None:
        """Starts the sums from 0."""
        for _, variable in self._variables():
            variable.assign(tf.zeros_like(variable))

    def load_by_name(self, saved: Mapping[str, np.ndarray]) -> None:
        """Takes over sums that were saved by name, perhaps by another version: what is not there starts at 0."""
        for name, variable in (("nonfinite_steps", self.nonfinite_steps), *self._variables()):
            value = saved.get(name)
            fits = value is not None and tuple(value.shape) == tuple(variable.shape)
            variable.assign(tf.cast(value, variable.dtype) if fits else tf.zeros_like(variable))

    def _variables(self) -> Iterator[tuple[str, tf.Variable]]:
        for name in ("steps", "confusion", *_names()):
            yield name, getattr(self, name)


def _names() -> tuple[str, ...]:
    return (*MEANS, *DIVISORS.values(), FINITE_STEPS)
