"""Optimizers with parameter groups, each with its own learning rate."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from petseg.config import OptimizerConfig
from petseg.models.layers import InferenceMode
from petseg.training import learning_rates
from petseg.training.learning_rates import LearningRate


@dataclasses.dataclass(frozen=True)
class Group:
    """Weights that share a learning rate.

    Attributes:
      weights: the weights to update.
      learning_rate: learning-rate schedule, a function of the trainer's step, not of `optimizer.iterations`.
    """

    weights: Sequence[keras.Variable]
    learning_rate: LearningRate


class Optimizer(tf.Module):
    """One Keras optimizer for each parameter group. Create it inside ``strategy.scope()``.

    It takes gradients that are already reduced over the replicas, so Keras's own reduction is switched off. The
    optimizers are built at once, so that a checkpoint restores all their slots.

    Attributes:
      weights: the weights of all groups, in the order of the gradients.
      variables: learning rates, counts and slots.
    """

    def __init__(self, config: OptimizerConfig, groups: Sequence[Group]):
        """Builds a Keras optimizer for each group.

        Args:
          config: kind of optimizer, momentum and weight decay (decoupled; biases and norm parameters are exempt).
          groups: the weights to update; the learning rate of the first group is reported.
        """
        super().__init__()
        self._groups = tuple(groups)
        self.weights = [weight for group in groups for weight in group.weights]
        self._optimizers = [_keras_optimizer(config, group.weights) for group in groups]

    @property
    def variables(self) -> tuple[Any, ...]:
        return tuple(variable for optimizer in self._optimizers for variable in optimizer.variables)

    @property
    def iterations(self) -> Any:
        """Number of updates so far."""
        return self._optimizers[0].iterations

    def learning_rate(self, step: tf.Tensor) -> tf.Tensor:
        """The learning rate of the first group at a step, a float32 scalar."""
        return self._groups[0].learning_rate(step)

    def set_learning_rates(self, step: tf.Tensor) -> None:
        """Sets the learning rates of a step, outside the replicas."""
        for group, optimizer in zip(self._groups, self._optimizers, strict=True):
            optimizer.learning_rate.assign(group.learning_rate(step))

    def apply(self, gradients: Sequence[tf.Tensor]) -> None:
        """Updates all weights, on a replica."""
        rest = list(gradients)
        for group, optimizer in zip(self._groups, self._optimizers, strict=True):
            part, rest = rest[: len(group.weights)], rest[len(group.weights) :]
            optimizer.apply_gradients(zip(part, group.weights, strict=True))


def build_optimizer(config: OptimizerConfig, model: keras.Model, total_steps: int) -> Optimizer:
    """The optimizer of a model; call it inside ``strategy.scope()``.

    The encoder and layers with a `learning_rate_factor` form groups with their own learning rates.

    Raises:
      ConfigError: if the warm-up is not shorter than the run.
    """
    rate = learning_rates.learning_rate_schedule(config, total_steps)
    parts: dict[LearningRate, list[keras.Layer]] = {}
    by_factor: dict[float, list[keras.Layer]] = {}
    for layer in model._flatten_layers(include_self=False):
        if layer.name == "encoder" and isinstance(layer, InferenceMode):
            factor, first_step = config.encoder_learning_rate_factor, config.unfreeze_encoder_at
            parts[learning_rates.scaled(rate, factor, first_step=first_step)] = [layer]
        elif hasattr(layer, "learning_rate_factor"):
            by_factor.setdefault(layer.learning_rate_factor, []).append(layer)
    parts.update({learning_rates.scaled(rate, factor): layers for factor, layers in by_factor.items()})
    groups = []
    known: set[int] = set()
    for part_rate, layers in parts.items():
        weights = list({id(w): w for layer in layers for w in layer.trainable_variables if id(w) not in known}.values())
        known |= {id(weight) for weight in weights}
        if weights:
            groups.append(Group(weights, part_rate))
    rest = [weight for weight in model.trainable_variables if id(weight) not in known]
    return Optimizer(config, [Group(rest, rate), *groups] if rest else groups)


def _keras_optimizer(config: OptimizerConfig, weights: Sequence[keras.Variable]) -> keras.optimizers.Optimizer:
    """Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019) or SGD, built, without its own all-reduce."""
    decay = config.weight_decay or None
    if config.optimizer == "adam":
        optimizer = keras.optimizers.Adam(weight_decay=decay)
    elif config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(weight_decay=decay)
    else:
        optimizer = keras.optimizers.SGD(momentum=config.momentum, weight_decay=decay)
    optimizer.exclude_from_weight_decay(var_list=[weight for weight in weights if len(weight.shape) < 2])
    optimizer.build(weights)
    # Keras's own reduction would sum reduced gradients again; if a new Keras renames it, refuse to train.
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        raise RuntimeError(
            f"Keras {keras.__version__}: its optimizers have no `_all_reduce_sum_gradients` to switch off, so "
            "gradients would be multiplied by the number of replicas; install a version of Keras that setup.cfg allows"
        )
    optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    return optimizer
