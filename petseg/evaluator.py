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
from petseg.variables import replica_sum


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a pass over a split counted.

    Attributes:
      loss: as in training.
      confusion_matrices: int64 [N, C, C], one for each example, rows true, columns predicted.
    """

    loss: float
    confusion_matrices: np.ndarray

    @property
    def confusion_matrix(self) -> np.ndarray:
        """int64 [C, C], over all examples."""
        return self.confusion_matrices.sum(axis=0)

    def results(self, step: int, split: str) -> dict[str, Any]:
        """What a results file holds: the counts, and every score that follows from them."""
        return {
            "step": step,
            "split": split,
            "examples": len(self.confusion_matrices),
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
    """Scores a model on a split under a strategy. Make it inside ``strategy.scope()``.

    The loss is the training loss without augmentation: same weights, same normalisation.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        examples: Examples,
        *,
        batch_size: int,
        class_weights: Sequence[float] | None,
        loss_normalization: str,
        stop: tf.Variable | None = None,
    ):
        """Makes one.

        Args:
          strategy: any number of replicas.
          model: float32 images in [0, 255] -> float32 logits.
          examples: the split.
          batch_size: examples per step over all replicas; any number.
          class_weights: one per class, or None.
          loss_normalization: "pixels" or "weights": what the summed loss is divided by.
          stop: float32 variable; set to 1 from another thread, it ends a pass early.
        """
        self._strategy, self._model, self._examples, self._batch_size = strategy, model, examples, batch_size
        self._stop = tf.constant(0.0) if stop is None else stop
        self._class_weights, self._loss_normalization = class_weights, loss_normalization
        _, height, width, self._num_classes = model.output_shape
        images = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8, "images")
        self._predict = tf.function(self._classify, input_signature=[images])
        self._pixels = float(height * width)
        self._scored = replica_sum([], tf.int64)
        self._loss, self._denominator = replica_sum([], tf.float32), replica_sum([], tf.float32)
        self._confusion = replica_sum([len(examples), self._num_classes, self._num_classes], tf.int64)

    def evaluate(self) -> Evaluation | None:
        """Scores all examples; None if the pass was ended early."""
        batches, count = input_pipeline.distributed_evaluation_batches(
            self._strategy, self._examples, batch_size=self._batch_size
        )
        totals = (self._scored, self._loss, self._denominator, self._confusion)
        for total in totals:
            total.assign(tf.zeros_like(total))
        self._loop(iter(batches), tf.constant(count, tf.int64))
        scored, loss, denominator, confusion = (total.numpy() for total in totals)
        if scored < len(self._examples):
            return None
        return Evaluation(float(loss / denominator) if denominator else float("nan"), confusion)

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class ids, int32 [B, H, W], and their probabilities, float32 [B, H, W], for images uint8 [B, H, W, 3]."""
        classes, confidence = self._predict(tf.constant(images))
        return classes.numpy(), confidence.numpy()

    def graph(self) -> tf.Graph:
        """The graph of `predict`."""
        return self._predict.get_concrete_function().graph

    def _classify(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        probabilities = tf.nn.softmax(self._model(tf.cast(images, tf.float32), training=False))
        return tf.argmax(probabilities, axis=-1, output_type=tf.int32), tf.reduce_max(probabilities, axis=-1)

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
        matrices = metrics.confusion_matrices(masks[..., 0], predictions, valid, self._num_classes)
        self._loss.assign_add(losses.weighted_sum(pixel_losses, weights) / self._pixels)
        self._denominator.assign_add(tf.reduce_sum(counted) / self._pixels)
        ids = batch["example_id"][:, None]  # of an example that only fills up a batch: 0, to which it adds nothing
        self._confusion.assign_add(tf.scatter_nd(ids, matrices, tf.shape(self._confusion, tf.int64)))
        self._scored.assign_add(tf.reduce_sum(tf.cast(batch["valid"], tf.int64)))
