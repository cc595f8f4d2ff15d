"""Optimizers with parameter groups, each with its own learning rate."""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from petseg.config import OptimizerConfig
from petseg.models.layers import InferenceMode
from petseg.training import learning_rates
from petseg.training.flat_vectors import FlatWeights, Kind, StoredSlice, buckets
from petseg.training.keras_optimizers import named_optimizer
from petseg.training.learning_rates import LearningRate

logger = logging.getLogger(__name__)
# Optimizers whose update of an element depends on that element alone; the exact types, since Muon is a kind of Adam.
ELEMENTWISE = frozenset(
    getattr(keras.optimizers, name)
    for name in ("Adam", "AdamW", "SGD", "Lion", "Nadam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Ftrl")
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Weights that share a learning rate."""

    weights: Sequence[keras.Variable]  # the weights to update
    # learning-rate schedule, a function of the trainer's step, not of `optimizer.iterations`
    learning_rate: LearningRate


class Optimizer(tf.Module):
    """One Keras optimizer for each parameter group. Create it inside ``strategy.scope()``.

    Keras updates one variable at a time, so its `ELEMENTWISE` optimizers are built for a few flat vectors in place of
    the weights, others for the weights themselves. Checkpoints store slots by weight in both cases. The optimizers are
    built at once, so that a checkpoint restores all their slots.

    It takes gradients that are already reduced over the replicas, so Keras's own reduction is switched off.
    """

    def __init__(self, config: OptimizerConfig, groups: Sequence[Group], bucket_bytes: float = 0):
        """Builds a Keras optimizer for each group.

        Args:
          groups: the weights to update; the learning rate of the first group is reported.
          bucket_bytes: approximate size of a flat vector; 0: no limit.
        """
        super().__init__()
        self._groups, self._warned_of_unused = tuple(groups), False
        self.weights = [weight for group in groups for weight in group.weights]
        self._updates = tuple(update_of(named_optimizer(config), group.weights, bucket_bytes) for group in groups)
        self._optimizers = [update.stored for update in self._updates]  # the name under which checkpoints store them

    @property
    def variables(self) -> tuple[Any, ...]:
        return tuple(variable for update in self._updates for variable in update.optimizer.variables)

    @property
    def iterations(self) -> Any:
        """Number of updates so far."""
        return self._updates[0].optimizer.iterations

    def learning_rate(self, step: tf.Tensor) -> tf.Tensor:
        """The learning rate of the first group at a step, a float32 scalar."""
        return self._groups[0].learning_rate(step)

    def set_learning_rates(self, step: tf.Tensor) -> None:
        """Sets the learning rates of a step, outside the replicas."""
        for group, update in zip(self._groups, self._updates, strict=True):
            update.optimizer.learning_rate.assign(group.learning_rate(step))

    def gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
        """Joined gradients of a loss; 0 for weights that it does not depend on, with one warning."""
        found = tape.gradient(loss, self.weights)
        unused = [w.path for w, gradient in zip(self.weights, found, strict=True) if gradient is None]
        if unused and not self._warned_of_unused:  # each replica traces this
            self._warned_of_unused = True
            logger.warning("the loss does not depend on these weights, whose gradients are 0: %s", ", ".join(unused))
        return self.join(
            [
                tf.zeros(weight.shape, weight.dtype) if gradient is None else gradient
                for weight, gradient in zip(self.weights, found, strict=True)
            ]
        )

    def join(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Tensors of the weights' shapes, such as gradients, joined as `apply` takes them."""
        parts = _chunks(tensors, [len(group.weights) for group in self._groups])
        return [vector for update, part in zip(self._updates, parts, strict=True) for vector in update.join(part)]

    def split(self, joined: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The inverse of `join`."""
        return [tensor for update, part in self._with_update(joined) for tensor in update.split(part)]

    def apply(
        self, gradients: Sequence[tf.Tensor], is_measured: tf.Tensor | bool = False
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Updates all weights by joined gradients, on a replica.

        Returns the joined weights before the update (only meaningful if `is_measured`), and after it.
        """
        before, after = list[tf.Tensor](), list[tf.Tensor]()
        for update, part in self._with_update(gradients):
            update.load()
            before += _values_if(is_measured, update.variables)
            update.optimizer.apply_gradients(zip(part, update.variables, strict=True))
            after += [tf.identity(variable.value) for variable in update.variables]
            update.store()
        return before, after

    def _with_update(self, joined: Sequence[tf.Tensor]) -> Iterable[tuple["_Flat | PerWeight", list[tf.Tensor]]]:
        sizes = [len(update.variables) for update in self._updates]
        return zip(self._updates, _chunks(joined, sizes), strict=True)


class PerWeight:
    """A Keras optimizer that updates a group's weights themselves."""

    def __init__(self, optimizer: keras.optimizers.Optimizer, weights: Sequence[keras.Variable]):
        self.optimizer = self.stored = optimizer
        self.variables = weights
        _build(optimizer, weights, exempt=[weight for weight in weights if _is_exempt(weight)])

    def join(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return list(tensors)

    split = join

    def load(self) -> None:
        """The weights are in place."""

    store = load


class _Flat(FlatWeights):
    """A Keras optimizer that updates a group's weights in flat vectors, with the attributes of `PerWeight`."""

    def __init__(
        self, optimizer: keras.optimizers.Optimizer, weights: Sequence[keras.Variable], bucket_bytes: float = 0
    ):
        parts = zip(weights, buckets(weights, bucket_bytes), strict=True)
        super().__init__(weights, [Kind(weight.dtype, _is_exempt(weight), bucket) for weight, bucket in parts])
        self.optimizer, add_slots, slots = optimizer, optimizer.add_optimizer_variables, list[Any]()

        def add_and_record(variables: Any, names: Any, *args: Any, **options: Any) -> Any:
            added = add_slots(variables, names, *args, **options)
            by_name = [added] if isinstance(names, str) else added
            slots.extend(zip(*(self.stored_slices(of_name) for of_name in by_name), strict=True))  # as Keras has them
            return added

        optimizer.add_optimizer_variables = add_and_record
        kinds = zip(self.variables, self.kinds, strict=True)
        _build(optimizer, self.variables, exempt=[variable for variable, kind in kinds if kind.is_exempt])
        self.stored = _StoredOptimizer(optimizer, [part for of_weight in slots for part in of_weight])


class _StoredOptimizer(tf.Module):
    """The state of an optimizer of flat vectors under the names that one of the weights has in a checkpoint."""

    def __init__(self, optimizer: keras.optimizers.Optimizer, slots: Sequence[StoredSlice]):
        super().__init__()
        self._iterations, self._learning_rate = optimizer.iterations, optimizer.learning_rate
        others = [v for v in optimizer.variables if len(v.shape) == 0]  # iterations and learning rate are the first
        self._variables = [*others[:2], *slots, *others[2:]]


def update_of(
    optimizer: keras.optimizers.Optimizer, weights: Sequence[keras.Variable], bucket_bytes: float = 0
) -> _Flat | PerWeight:
    """The update of a group's weights, in flat vectors if the optimizer allows it."""
    # Norms of single gradients, which `clipnorm` limits, need the weights too.
    is_elementwise = type(optimizer) in ELEMENTWISE and not optimizer.clipnorm
    return _Flat(optimizer, weights, bucket_bytes) if is_elementwise else PerWeight(optimizer, weights)


def _is_exempt(weight: keras.Variable) -> bool:
    """Whether a weight is exempt from weight decay: biases and parameters of norms."""
    return len(weight.shape) < 2


def _values_if(is_needed: tf.Tensor | bool, variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
    """Values of variables if they are needed, else scalars; a value that is kept costs the next assignment a copy."""
    needed, scalars = (lambda: [tf.identity(v.value) for v in variables]), [tf.zeros([], v.dtype) for v in variables]
    return tf.nest.flatten(tf.cond(tf.convert_to_tensor(is_needed), needed, lambda: scalars))


def _chunks(values: Iterable[Any], sizes: Iterable[int]) -> list[list[Any]]:
    rest = iter(values)
    return [list(itertools.islice(rest, size)) for size in sizes]


def build_optimizer(
    config: OptimizerConfig, model: keras.Model, total_steps: int, bucket_bytes: float = 0
) -> Optimizer:
    """The optimizer of a model; call it inside ``strategy.scope()``. For `bucket_bytes` see `Optimizer`.

    The encoder and layers with a `learning_rate_factor` form groups with their own learning rates. Raises ConfigError
    if the warm-up is not shorter than the run.
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
    # The decoder comes first, as its gradients do.
    return Optimizer(config, [Group(rest, rate), *groups] if rest else groups, bucket_bytes)


def _build(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable], exempt: Sequence[keras.Variable]
) -> None:
    """Builds an optimizer without its own all-reduce; the `exempt` variables have no weight decay."""
    optimizer.exclude_from_weight_decay(var_list=exempt)
    optimizer.build(variables)
    # Keras's own reduction would sum reduced gradients again; if a new Keras renames it, refuse to train.
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        raise RuntimeError(
            f"Keras {keras.__version__}: its optimizers have no `_all_reduce_sum_gradients` to switch off, so "
            "gradients would be multiplied by the number of replicas; install a version of Keras that setup.cfg allows"
        )
    optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
