"""Exponential moving average (EMA) of the weights (Polyak and Juditsky 1992)."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from petseg.training.flat_vectors import Layout
from petseg.training.variables import moving_statistics, replica_copy


class WeightAverage(tf.Module):
    """Moving averages of a model's trained weights and moving statistics. Create it inside ``strategy.scope()``.

    Statistics are averaged too, because those of the current weights do not fit the averaged weights.
    """

    def __init__(self, model: keras.Model, decay: float):
        """Starts with the current weights.

        Args:
          decay: fraction of the average that a step keeps; at most (1 + step) / (10 + step), so that the initial
            weights are soon forgotten (as in `tf.train.ExponentialMovingAverage`).
        """
        super().__init__()
        self._decay = decay
        self._originals = [*model.trainable_variables, *moving_statistics(model)]
        self._layout = Layout([variable.shape for variable in self._originals])
        self._average = self._no_dependency(replica_copy(self._joined(), tf.float32))
        self._averages = self._layout.stored(self._average)  # this is what checkpoints store, by position

    def update(self, step: tf.Tensor) -> None:
        """Updates the averages after a step, on a replica."""
        step = tf.cast(step, tf.float32)
        share = 1 - tf.minimum(self._decay, (1 + step) / (10 + step))
        self._average.assign_add(share * (self._joined() - self._average))

    def forward(self, model: keras.Model, images: tf.Tensor) -> tf.Tensor:
        """Output of the model with the averages as its weights, in inference mode, on a replica (a mean teacher)."""
        averages = self._layout.split(self._average)
        by_id = {id(variable): value for variable, value in zip(self._originals, averages, strict=True)}

        def values(variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
            return [tf.cast(by_id.get(id(each), each.value), each.dtype) for each in variables]

        weights, others = values(model.trainable_variables), values(model.non_trainable_variables)
        return model.stateless_call(weights, others, images, training=False)[0]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Context with the averages in the model. All processes of a cluster must enter it together."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchanges weights and averages, outside the replicas."""
        averages, originals = self._layout.split(self._average.numpy()), self._joined()
        for original, average in zip(self._originals, averages, strict=True):
            original.assign(average)
        self._average.assign(originals)

    def _joined(self) -> tf.Tensor:
        return self._layout.join([tf.cast(variable.value, tf.float32) for variable in self._originals])
