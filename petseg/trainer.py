"""One training step, and the compiled loop around it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from petseg import losses, metrics, sample_weights
from petseg.augmentation import Augmentation
from petseg.optimization import LearningRate


@dataclasses.dataclass(frozen=True)
class TrainingSums:
    """What the steps since the last `Trainer.read_sums` did.

    Attributes:
      steps: number of steps.
      loss: sum of weight x loss over all pixels, over the sum of denominators.
      gradient_norm: mean over the steps of the global norm of the gradients.
      learning_rate: of the last step.
      confusion_matrix: int64 [C, C], rows true, columns predicted.
    """

    steps: int
    loss: float
    gradient_norm: float
    learning_rate: float
    confusion_matrix: np.ndarray


class Trainer:
    """Runs steps of training under a strategy.

    Make it inside ``strategy.scope()``.

    Attributes:
      step: int64 variable, the clock: optimizer steps attempted.
      model: the network, float32 images in [0, 255] -> logits.
      optimizer: built for the model's trainable variables, its own gradient reduction switched off.
      traces: how often the loop was traced; 1 is right.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        learning_rate: LearningRate,
        augment: Augmentation,
        *,
        batch_size: int,
        class_weights: Sequence[float] | None,
        loss_normalization: str,
    ):
        self.model, self.optimizer, self.traces = model, optimizer, 0
        self._strategy, self._learning_rate, self._augment = strategy, learning_rate, augment
        self._class_weights, self._loss_normalization = class_weights, loss_normalization
        _, height, width, self._num_classes = model.output_shape
        self._pixels = float(batch_size * height * width)
        self.step = _variable(0, tf.int64)
        self.nonfinite_step = _variable(-1, tf.int64)
        self._steps = _variable(0, tf.int64)
        self._sums = [_variable(0.0, tf.float32) for _ in range(3)]
        self._confusion = tf.Variable(
            tf.zeros([self._num_classes] * 2, tf.int64),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )

    def run(self, iterator: Any, num_steps: int) -> None:
        """Takes `num_steps` batches and makes a step with each; 0 only compiles."""
        self._loop(iterator, tf.constant(num_steps, tf.int64))

    def read_sums(self) -> TrainingSums:
        """What happened since the last call; starts counting anew."""
        loss, denominator, gradient_norm = (float(value.numpy()) for value in self._sums)
        steps = int(self._steps.numpy())
        sums = TrainingSums(
            steps=steps,
            loss=loss / denominator if denominator else float("nan"),
            gradient_norm=gradient_norm / steps if steps else float("nan"),
            learning_rate=float(self._learning_rate(tf.maximum(self.step - 1, 0))),
            confusion_matrix=self._confusion.numpy(),
        )
        for variable in (self._steps, *self._sums, self._confusion):
            variable.assign(tf.zeros_like(variable))
        return sums

    @tf.function
    def _loop(self, iterator: Any, num_steps: tf.Tensor) -> None:
        self.traces += 1
        for _ in tf.range(num_steps):
            self._step(next(iterator))

    def _step(self, batch: Any) -> None:
        """One step, seen from outside the replicas."""
        self.optimizer.learning_rate.assign(self._learning_rate(self.step))
        results = self._strategy.run(self._replica_step, args=(batch, self.step))
        # Every replica returns the same numbers, for they were computed from reduced sums.
        loss, denominator, gradient_norm = (self._strategy.experimental_local_results(value)[0] for value in results)
        for total, value in zip(self._sums, (loss, denominator, gradient_norm), strict=True):
            total.assign_add(value)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(gradient_norm)
        first = (self.nonfinite_step < 0) & ~finite
        self.nonfinite_step.assign(tf.where(first, self.step, self.nonfinite_step))
        self._steps.assign_add(1)
        self.step.assign_add(1)

    def _replica_step(self, batch: dict[str, tf.Tensor], step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """One step, seen from a replica: local sums, one all-reduce, one division, the update."""
        variables = self.model.trainable_variables
        images, masks = self._augment(tf.cast(batch["image"], tf.float32), batch["mask"], step, batch["position"])
        weights = sample_weights.sample_weight_map(masks, self._class_weights)
        valid = sample_weights.valid_pixels(masks)
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            pixel_losses = losses.sparse_categorical_crossentropy(masks[..., 0], logits)
            # Divided by a constant, the pixels of the global batch, to keep sums near 1; the true division is below.
            loss = losses.weighted_sum(pixel_losses, weights) / self._pixels
        gradients = tape.gradient(loss, variables)
        counted = weights if self._loss_normalization == "weights" else tf.cast(valid, tf.float32)
        denominator = tf.reduce_sum(counted) / self._pixels
        *gradients, loss, denominator = tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.SUM, [*gradients, loss, denominator]
        )
        gradients = [gradient / denominator for gradient in gradients]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        predictions = tf.argmax(logits, axis=-1, output_type=tf.int32)
        self._confusion.assign_add(metrics.confusion_matrix(masks[..., 0], predictions, valid, self._num_classes))
        return loss, denominator, tf.linalg.global_norm(gradients)


def _variable(value: float, dtype: tf.DType) -> tf.Variable:
    """A scalar that is assigned outside the replicas, or alike on all of them."""
    return tf.Variable(value, trainable=False, dtype=dtype, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
