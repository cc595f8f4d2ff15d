"""Optimizers, learning-rate schedules, and the loss scale of float16."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from petseg.errors import ConfigError
from petseg.training.variables import step_variable

LearningRate = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Group:
    """Weights that share a learning rate.

    Attributes:
      weights: the weights.
      learning_rate: of the clock, not of the optimizer's own count.
    """

    weights: Sequence[keras.Variable]
    learning_rate: LearningRate


class Optimizer(tf.Module):
    """Updates groups of weights, each at its own learning rate, by a Keras optimizer for each.

    Gradients come reduced over the replicas, hence the Keras optimizers' own reduction is switched off. They are built,
    so that a checkpoint finds all their slots. Make it inside ``strategy.scope()``.

    Attributes:
      weights: those of all groups, in the order of the gradients.
      variables: learning rates, counts and slots.
    """

    def __init__(self, name: str, groups: Sequence[Group], *, weight_decay: float = 0.0, momentum: float = 0.9):
        """Makes one.

        Args:
          name: "adam" (Kingma and Ba 2015), "adamw" (Loshchilov and Hutter 2019) or "sgd".
          groups: what to update; the first one's learning rate is the one that is shown.
          weight_decay: share of a weight, times the learning rate, that each step takes away (decoupled); not of biases
            and of the scales and offsets of norms.
          momentum: of "sgd".

        Raises:
          ValueError: if there is no optimizer of that name.
        """
        super().__init__()
        self._groups = tuple(groups)
        self.weights = [weight for group in groups for weight in group.weights]
        self._optimizers = [_keras_optimizer(name, group.weights, weight_decay, momentum) for group in groups]

    @property
    def variables(self) -> tuple[Any, ...]:
        return tuple(variable for optimizer in self._optimizers for variable in optimizer.variables)

    @property
    def iterations(self) -> Any:
        """Updates made so far."""
        return self._optimizers[0].iterations

    def learning_rate(self, step: tf.Tensor) -> tf.Tensor:
        """Of the first group at a step; a float32 scalar."""
        return self._groups[0].learning_rate(step)

    def set_learning_rates(self, step: tf.Tensor) -> None:
        """Prepares the update of a step, outside the replicas."""
        for group, optimizer in zip(self._groups, self._optimizers, strict=True):
            optimizer.learning_rate.assign(group.learning_rate(step))

    def apply(self, gradients: Sequence[tf.Tensor]) -> None:
        """Makes an update, on a replica."""
        rest = list(gradients)
        for group, optimizer in zip(self._groups, self._optimizers, strict=True):
            part, rest = rest[: len(group.weights)], rest[len(group.weights) :]
            optimizer.apply_gradients(zip(part, group.weights, strict=True))


def _keras_optimizer(
    name: str, weights: Sequence[keras.Variable], weight_decay: float, momentum: float
) -> keras.optimizers.Optimizer:
    decay = weight_decay or None
    if name == "adam":
        optimizer = keras.optimizers.Adam(weight_decay=decay)
    elif name == "adamw":
        optimizer = keras.optimizers.AdamW(weight_decay=weight_decay)
    elif name == "sgd":
        optimizer = keras.optimizers.SGD(momentum=momentum, weight_decay=decay)
    else:
        raise ValueError(f"no optimizer {name!r}; there are 'adam', 'adamw' and 'sgd'")
    optimizer.exclude_from_weight_decay(var_list=[weight for weight in weights if len(weight.shape) < 2])
    optimizer.build(weights)
    optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    return optimizer


def learning_rate_schedule(
    name: str,
    peak: float,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    power: float = 0.9,
    drop_at: Sequence[float] = (),
    drop_factor: float = 0.1,
) -> LearningRate:
    """A schedule: step (int64 scalar) -> learning rate (float32 scalar).

    Args:
      name: "constant"; "cosine": from the peak to 0 along half a cosine (Loshchilov and Hutter 2017); "polynomial": to
        0 as (1 - share of the run)^power (Chen et al. 2018, DeepLab); "step": down by a factor at some points.
      peak: the highest learning rate.
      total_steps: the length of the run.
      warmup_steps: steps over which it rises from 0 to the peak, in a line (Goyal et al. 2017); the schedule fills the
        rest of the run.
      power: of "polynomial".
      drop_at: where "step" goes down, as shares of the rest of the run.
      drop_factor: by which it does.

    Raises:
      ConfigError: if nothing is left of the run after the warm-up.
      ValueError: if there is no schedule of that name.
    """
    rest = total_steps - warmup_steps
    if warmup_steps and rest <= 0:
        raise ConfigError(f"--warmup_steps={warmup_steps}: takes less than the {total_steps} steps of the run")
    schedules = keras.optimizers.schedules
    if name == "constant":
        schedule: LearningRate = lambda step: tf.constant(peak, tf.float32)  # noqa: E731
    elif name == "cosine":
        schedule = schedules.CosineDecay(peak, rest)
    elif name == "polynomial":
        schedule = schedules.PolynomialDecay(peak, rest, end_learning_rate=0.0, power=power)
    elif name == "step":
        bounds = [round(share * rest) - 1 for share in drop_at]  # of Keras's own: up to and with this step
        schedule = schedules.PiecewiseConstantDecay(bounds, [peak * drop_factor**i for i in range(len(bounds) + 1)])
    else:
        raise ValueError(f"no learning-rate schedule {name!r}; there are constant, cosine, polynomial and step")
    if not warmup_steps:
        return schedule

    def warmed_up(step: tf.Tensor) -> tf.Tensor:
        rising = peak * tf.cast(step + 1, tf.float32) / (warmup_steps + 1)
        return tf.where(step < warmup_steps, rising, schedule(tf.maximum(step - warmup_steps, 0)))

    return warmed_up


def scaled(learning_rate: LearningRate, factor: float, *, first_step: int = 0) -> LearningRate:
    """A schedule times a factor, and 0 before a step."""
    return lambda step: tf.where(step < first_step, 0.0, factor * learning_rate(step))


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
