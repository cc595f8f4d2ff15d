"""The pass over a split that counts every example once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from petseg import losses, metrics, sample_weights
from petseg.config import CLASS_NAMES
from petseg.data import input_pipeline
from petseg.data.datasets import Examples


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a pass over a split counted.

    Attributes:
      examples: their number.
      loss: as in training.
      confusion_matrix: int64 [C, C], rows true, columns predicted.
    """

    examples: int
    loss: float
    confusion_matrix: np.ndarray

    def results(self, step: int, split: str) -> dict[str, Any]:
        """What a results file holds: the counts, and every score that follows from them."""
        return {
            "step": step,
            "split": split,
            "examples": self.examples,
            "loss": self.loss,
            **metrics.from_confusion_matrix(self.confusion_matrix, CLASS_NAMES),
            "confusion_matrix": self.confusion_matrix.tolist(),
        }


def table(results: Mapping[str, Any]) -> str:
    """Results as text, a row for each class."""
    names = ("iou", "dice", "precision", "recall")
    lines = [
        f"{results['split']}, step {results['step']}: {results['examples']} examples, loss {results['loss']:.4f}",
        f"{'':12}" + "".join(f"{name:>11}" for name in names),
    ]
    for class_name in CLASS_NAMES:
        lines.append(f"{class_name:12}" + "".join(f"{results[name][class_name]:11.4f}" for name in names))
    lines.append(f"{'mean IoU':12}{results['mean_iou']:11.4f}")
    lines.append(f"{'accuracy':12}{results['accuracy']:11.4f}")
    return "\n".join(lines)


class Evaluator:
    """Scores a model under a strategy. Make it inside ``strategy.scope()``.

    The loss is the training loss without augmentation: same weights, same normalisation.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        *,
        class_weights: Sequence[float] | None,
        loss_normalization: str,
        stop: tf.Variable | None = None,
    ):
        """Makes one.

        Args:
          strategy: any number of replicas.
          model: float32 images in [0, 255] -> float32 logits.
          class_weights: one per class, or None.
          loss_normalization: "pixels" or "weights": what the summed loss is divided by.
          stop: float32 variable; set to 1 from another thread, it ends a pass early.
        """
        self._strategy, self._model = strategy, model
        self._stop = tf.constant(0.0) if stop is None else stop
        self._class_weights, self._loss_normalization = class_weights, loss_normalization
        _, height, width, self._num_classes = model.output_shape
        self._pixels = float(height * width)
        self._examples = _total([], tf.int64)
        self._loss, self._denominator = _total([], tf.float32), _total([], tf.float32)
        self._confusion = _total([self._num_classes] * 2, tf.int64)

    def evaluate(self, examples: Examples, *, batch_size: int) -> Evaluation:
        """Scores all examples.

        Args:
          examples: the split.
          batch_size: examples per step over all replicas; any number.

        Returns:
          what was counted; of fewer examples than there are if the pass was ended early.
        """
        batches, count = input_pipeline.distributed_evaluation_batches(self._strategy, examples, batch_size=batch_size)
        totals = (self._examples, self._loss, self._denominator, self._confusion)
        for total in totals:
            total.assign(tf.zeros_like(total))
        self._loop(iter(batches), tf.constant(count, tf.int64))
        number, loss, denominator, confusion = (total.numpy() for total in totals)
        return Evaluation(int(number), float(loss / denominator) if denominator else float("nan"), confusion)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Class ids [B, H, W] for images uint8 [B, H, W, 3]."""
        return self._predict(tf.constant(images)).numpy()

    @tf.function(reduce_retracing=True)
    def _predict(self, images: tf.Tensor) -> tf.Tensor:
        logits = self._model(tf.cast(images, tf.float32), training=False)
        return tf.argmax(logits, axis=-1, output_type=tf.int32)

    @tf.function(reduce_retracing=True)
    def _loop(self, iterator: Any, count: tf.Tensor) -> None:
        done = tf.constant(0, tf.int64)
        while (done < count) & (self._stop == 0):
            self._strategy.run(self._replica_step, args=(next(iterator),))
            done += 1

    def _replica_step(self, batch: dict[str, tf.Tensor]) -> None:
        masks = batch["mask"]
        counts = batch["valid"][:, None, None]
        valid = sample_weights.valid_pixels(masks) & counts
        weights = sample_weights.sample_weight_map(masks, self._class_weights) * tf.cast(counts, tf.float32)
        logits = self._model(tf.cast(batch["image"], tf.float32), training=False)
        pixel_losses = losses.sparse_categorical_crossentropy(masks[..., 0], logits)
        counted = weights if self._loss_normalization == "weights" else tf.cast(valid, tf.float32)
        predictions = tf.argmax(logits, axis=-1, output_type=tf.int32)
        self._loss.assign_add(losses.weighted_sum(pixel_losses, weights) / self._pixels)
        self._denominator.assign_add(tf.reduce_sum(counted) / self._pixels)
        self._confusion.assign_add(metrics.confusion_matrix(masks[..., 0], predictions, valid, self._num_classes))
        self._examples.assign_add(tf.reduce_sum(tf.cast(batch["valid"], tf.int64)))


def _total(shape: list[int], dtype: tf.DType) -> tf.Variable:
    """A sum that each replica keeps for itself and that is added up when read."""
    return tf.Variable(
        tf.zeros(shape, dtype),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )
