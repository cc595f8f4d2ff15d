"""Learning-rate schedules as functions of the step."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from petseg import custom_code
from petseg.config import OptimizerConfig
from petseg.errors import ConfigError

LearningRate = Callable[[tf.Tensor], tf.Tensor]


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> LearningRate:
    """The schedule of a config: step (int64 scalar) -> learning rate (float32 scalar).

    A linear warm-up (Goyal et al. 2017) is followed by "constant"; "cosine": to 0 along half a cosine (Loshchilov and
    Hutter 2017); "polynomial": to 0 as (1 - progress)^power (Chen et al. 2018, DeepLab); "step": times a factor at
    given points; or user code: a function of the step after the warm-up, int64 scalar, and the number of these
    steps, to the factor of --learning_rate, a scalar. Raises ConfigError if the warm-up is not shorter than the
    run of `total_steps`, or the user's function fails.
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
        bounds = [round(share * steps) - 1 for share in config.drop_shares()]  # Keras takes the last step before a drop
        return schedules.PiecewiseConstantDecay(bounds, [peak * config.drop_factor**i for i in range(len(bounds) + 1)])
    if custom_code.is_reference(name):
        return _own_schedule(name, peak, steps)
    return lambda step: tf.constant(peak, tf.float32)


def _own_schedule(reference: str, peak: float, steps: int) -> LearningRate:
    """A user-defined schedule, called at its first and last step to check it."""
    function = custom_code.load("learning_rate_schedule", reference)

    def factor(step: tf.Tensor) -> tf.Tensor:
        return tf.cast(function(step, steps), tf.float32)

    graph = tf.function(factor, autograph=False)  # as in training: the step is not known while a graph is made
    for step in {0, max(steps - 1, 0)}:
        with custom_code.explained("learning_rate_schedule", reference):
            value = graph(tf.constant(step, tf.int64)).numpy()
        if value.shape != () or not np.isfinite(value) or value < 0:
            raise ConfigError(
                f"--learning_rate_schedule={reference}: is {value} at step {step} of {steps}; must be one finite "
                "number of at least 0, the factor of --learning_rate"
            )
    return lambda step: peak * factor(step)


def scaled(learning_rate: LearningRate, factor: float, *, first_step: int = 0) -> LearningRate:
    """A schedule times a factor, and 0 before `first_step`."""
    return lambda step: tf.where(step < first_step, 0.0, factor * learning_rate(step))
