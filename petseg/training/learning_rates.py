"""Learning-rate schedules: functions of the clock."""

from collections.abc import Callable

import keras
import tensorflow as tf

from petseg.config import OptimizerConfig
from petseg.errors import ConfigError

LearningRate = Callable[[tf.Tensor], tf.Tensor]


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> LearningRate:
    """The schedule that flags describe: step (int64 scalar) -> learning rate (float32 scalar).

    After a warm-up, over which the rate rises in a line (Goyal et al. 2017), the schedule fills the rest of the run:
    "constant"; "cosine": to 0 along half a cosine (Loshchilov and Hutter 2017); "polynomial": to 0 as (1 - share of the
    run)^power (Chen et al. 2018, DeepLab); "step": down by a factor at some points.

    Args:
      config: name, highest rate, warm-up and what else a schedule needs.
      total_steps: the length of the run.

    Raises:
      ConfigError: if nothing is left of the run after the warm-up.
    """
    warmup_steps, peak = config.warmup_steps, config.learning_rate
    rest = total_steps - warmup_steps
    if warmup_steps and rest <= 0:
        raise ConfigError(f"--warmup_steps={warmup_steps}: must be less than the {total_steps} steps of the run")
    schedule = _without_warmup(config, rest)
    if not warmup_steps:
        return schedule

    def warmed_up(step: tf.Tensor) -> tf.Tensor:
        rising = peak * tf.cast(step + 1, tf.float32) / (warmup_steps + 1)
        return tf.where(step < warmup_steps, rising, schedule(tf.maximum(step - warmup_steps, 0)))

    return warmed_up


def _without_warmup(config: OptimizerConfig, steps: int) -> LearningRate:
    schedules, name, peak = keras.optimizers.schedules, config.learning_rate_schedule, config.learning_rate
    if name == "cosine":
        return schedules.CosineDecay(peak, steps)
    if name == "polynomial":
        return schedules.PolynomialDecay(peak, steps, end_learning_rate=0.0, power=config.polynomial_power)
    if name == "step":
        bounds = [round(share * steps) - 1 for share in config.drop_shares()]  # with Keras, the last before a fall
        return schedules.PiecewiseConstantDecay(bounds, [peak * config.drop_factor**i for i in range(len(bounds) + 1)])
    return lambda step: tf.constant(peak, tf.float32)


def scaled(learning_rate: LearningRate, factor: float, *, first_step: int = 0) -> LearningRate:
    """A schedule times a factor, and 0 before a step."""
    return lambda step: tf.where(step < first_step, 0.0, factor * learning_rate(step))
