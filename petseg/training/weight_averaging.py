"""The exponential moving average of the weights (Polyak and Juditsky 1992), often better than the last ones."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from petseg.training.variables import moving_statistics, replica_copy


class WeightAverage(tf.Module):
    """Averages of all that training changes in a model: its trained weights, and the statistics of its batch norms.

    Those of the weights as they are would not be those of the averaged weights; averaged alike, they come close.

    Make it inside ``strategy.scope()``.
    """

    def __init__(self, model: keras.Model, decay: float):
        """Starts with the weights as they are.

        Args:
          model: what to average.
          decay: how much of the average a step keeps; less at first, (1 + step) / (10 + step), so that the initial
            weights are soon forgotten (as `tf.train.ExponentialMovingAverage` does).
        """
        super().__init__()
        self._decay = decay
        self._originals = [*model.trainable_variables, *moving_statistics(model)]
        self._averages = [replica_copy(tf.identity(v.value), tf.as_dtype(v.dtype)) for v in self._originals]

    def update(self, step: tf.Tensor) -> None:
        """Takes the weights after a step into the average; on a replica."""
        step = tf.cast(step, tf.float32)
        share = 1 - tf.minimum(self._decay, (1 + step) / (10 + step))
        for average, original in zip(self._averages, self._originals, strict=True):
            average.assign_add(tf.cast(share, average.dtype) * (original.value - average))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the averages into the model, for a while. All processes of a cluster do this together."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchanges weights and averages, outside the replicas."""
        for average, original in zip(self._averages, self._originals, strict=True):
            kept = average.numpy()
            average.assign(original.numpy())
            original.assign(kept)
