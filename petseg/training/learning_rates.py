"""Learning-rate schedules: functions of the clock."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from petseg.errors import ConfigError

LearningRate = Callable[[tf.Tensor], tf.Tensor]


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
