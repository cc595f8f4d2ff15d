"""Optimizers, learning-rate schedules, and the loss scale of float16."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from petseg.training.learning_rates import LearningRate


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
        """Builds a Keras optimizer for each group.

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
    # Keras's own reduction would add up once more what is reduced already. Under another name it would go on unnoticed.
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        raise RuntimeError(
            f"Keras {keras.__version__}: its optimizers have no `_all_reduce_sum_gradients` to switch off, so "
            "gradients would be multiplied by the number of replicas; install a version of Keras that setup.cfg allows"
        )
    optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    return optimizer
