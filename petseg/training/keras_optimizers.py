"""Keras's optimizers by the names of --optimizer."""

import inspect
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from petseg import custom_code
from petseg.config import OptimizerConfig
from petseg.errors import ConfigError


class MatrixMuon(keras.optimizers.Muon):
    """Muon (Jordan et al. 2024) for kernels of convolutions too, as matrices with a column for each output channel.

    Keras's takes dense layers only. AdamW updates vectors, depthwise kernels, which mix no channels, and the logits'
    layer. Updates are scaled so that AdamW's learning rates and weight decays fit (Liu et al. 2025).
    """

    RMS = 0.2

    def _should_use_adamw(self, variable: keras.Variable) -> bool:
        return len(variable.shape) < 2 or variable.shape[-1] == 1 or "logits" in variable.path

    def _muon_update_step(self, gradient: tf.Tensor, variable: tf.Variable, lr: tf.Tensor, m: keras.Variable) -> None:
        self.assign_add(m, gradient + m * (self.momentum - 1))
        direction = tf.reshape(gradient + self.momentum * m, [-1, variable.shape[-1]])
        update = self.zeropower_via_newtonschulz5(direction, self.ns_steps)
        scale = self.RMS * max(direction.shape) ** 0.5
        self.assign_sub(variable, lr * scale * tf.reshape(update, variable.shape))


class ScheduleFreeAdamW(keras.optimizers.Optimizer):
    """Schedule-free AdamW (Defazio et al. 2024), for a constant learning rate, with or without a warm-up.

    In Keras 3.15's implementation the stored value of a sequence is TensorFlow's variable itself, so it is read after
    it has changed, and weight decay misses it. The model's weights are the points at which gradients are computed.
    """

    BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, decay: float):
        """Creates it with a weight decay, which is part of the AdamW steps."""
        super().__init__(learning_rate=1e-3)
        self.decay = decay

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the sequence of AdamW steps, which begins with the weights, mean squares, and sums of averages."""
        super().build(variables)
        self._steps, self._squares = self.add_optimizer_variables(variables, ["steps", "squares"])
        self._sums = [self.add_variable((), name="sum") for _ in variables]
        for steps, variable in zip(self._steps, variables, strict=True):
            steps.assign(variable)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Updates a variable, which lies between the steps and their average; the latter is recovered from it."""
        index, count = self._get_variable_index(variable), tf.cast(self.iterations + 1, gradient.dtype)
        rate, before = tf.cast(learning_rate, gradient.dtype), tf.identity(self._steps[index].value)
        average = (variable - (1 - self.BETA_1) * before) / self.BETA_1
        square = self._squares[index] + (1 - self.BETA_2) * (tf.square(gradient) - self._squares[index])
        update = gradient / (tf.sqrt(square / (1 - tf.pow(self.BETA_2, count))) + self.EPSILON)
        if self.decay and self._use_weight_decay(variable):
            update += self.decay * variable
        step, total = before - rate * update, self._sums[index] + tf.square(rate)
        average += tf.math.divide_no_nan(tf.square(rate), total) * (step - average)
        for slot, value in ((self._squares, square), (self._steps, step), (self._sums, total)):
            self.assign(slot[index], value)
        self.assign(variable, (1 - self.BETA_1) * step + self.BETA_1 * average)


def named_optimizer(config: OptimizerConfig) -> keras.optimizers.Optimizer:
    """The optimizer of a config, not built; its learning rate is assigned before each step.

    Raises ConfigError if it is user code that fails or returns something else.
    """
    if custom_code.is_reference(config.optimizer):
        return _own_optimizer(config)
    decay = config.weight_decay or None
    makers: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
        "adam": lambda: keras.optimizers.Adam(weight_decay=decay),  # Kingma and Ba 2015
        "adamw": lambda: keras.optimizers.AdamW(weight_decay=decay),  # Loshchilov and Hutter 2019
        "sgd": lambda: keras.optimizers.SGD(momentum=config.momentum, weight_decay=decay),
        "lion": lambda: keras.optimizers.Lion(weight_decay=decay),  # Chen et al. 2023
        "muon": lambda: _muon(decay),
        "schedule_free_adamw": lambda: ScheduleFreeAdamW(config.weight_decay),
        # Shazeer and Stern 2018; `relative_step` would lower the learning rates of the schedule.
        "adafactor": lambda: keras.optimizers.Adafactor(weight_decay=decay, relative_step=False),
        "lamb": lambda: keras.optimizers.Lamb(weight_decay=decay),  # You et al. 2020
    }
    return makers[config.optimizer]()


def _muon(decay: float | None) -> keras.optimizers.Optimizer:
    if "adam_weight_decay" not in inspect.signature(keras.optimizers.Muon).parameters:
        raise ConfigError(
            f"--optimizer=muon: Keras {keras.__version__} has another Muon; must be a newer Keras (Python 3.11)"
        )
    return MatrixMuon(weight_decay=decay, adam_weight_decay=decay, adam_lr_ratio=1)


def _own_optimizer(config: OptimizerConfig) -> keras.optimizers.Optimizer:
    """An optimizer that user code makes, once for each learning rate; the function gets the config."""
    made = custom_code.call("optimizer", config.optimizer, config)
    problem = None
    if not isinstance(made, keras.optimizers.Optimizer) or isinstance(made, keras.optimizers.LossScaleOptimizer):
        problem = f"a {type(made).__name__}"
    elif made.built:
        problem = "one that is built, or the same one again"
    elif not isinstance(made._learning_rate, keras.Variable):
        problem = "one with a learning-rate schedule"
    elif made.gradient_accumulation_steps:
        problem = "one that accumulates gradients"
    if problem:
        raise ConfigError(
            f"--optimizer={config.optimizer}: returned {problem}; must be a new Keras optimizer that is not built, "
            "with a number as its learning rate (--learning_rate and its schedule replace it)"
        )
    return made
