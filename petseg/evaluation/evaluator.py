"""The pass over a split that counts every example once."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from petseg.data import input_pipeline
from petseg.data.decoding import Examples
from petseg.evaluation import metrics
from petseg.models import inference
from petseg.training import confusion_matrix, sample_weights
from petseg.training.losses import Loss
from petseg.training.sample_weights import WeightMap
from petseg.training.variables import replica_sum


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a pass over a split counted.

    Attributes:
      loss: as in training.
      confusion_matrices: int64 [N, C, C], one for each example, rows true, columns predicted.
      boundaries: int64 [N, C, 4], as `metrics.boundary_counts`; None where details were not asked for.
      calibration: float64 [bins, 3], as `metrics.calibration_counts`, over all examples; likewise.
    """

    loss: float
    confusion_matrices: np.ndarray
    boundaries: np.ndarray | None = None
    calibration: np.ndarray | None = None

    @property
    def confusion_matrix(self) -> np.ndarray:
        """int64 [C, C], over all examples."""
        return self.confusion_matrices.sum(axis=0)


class Evaluator:
    """Scores a model on a split under a strategy. Make it inside ``strategy.scope()``.

    The loss is the training loss without augmentation: same weights, same normalisation.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        examples: Examples,
        weight_map: WeightMap,
        loss: Loss,
        *,
        batch_size: int,
        stop: tf.Variable | None = None,
        flip_tta: bool = False,
        details: bool = False,
    ):
        """Makes one.

        Args:
          strategy: any number of replicas.
          model: float32 images in [0, 255] -> float32 logits.
          examples: the split.
          weight_map: masks -> the weight of each pixel.
          loss: what training minimises.
          batch_size: examples per step over all replicas; any number.
          stop: float32 variable; set to 1 from another thread, it ends a pass early.
          flip_tta: average the probabilities of an image and of its mirror image.
          details: count outlines and calibration too.
        """
        self._strategy, self._model, self._examples, self._batch_size = strategy, model, examples, batch_size
        self._stop = tf.constant(0.0) if stop is None else stop
        self._weight_map, self._loss = weight_map, loss
        self._flip_tta, self._details = flip_tta, details
        _, height, width, self._num_classes = model.output_shape
        images = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8, "images")
        self._predict = tf.function(self._classify, input_signature=[images], autograph=False)
        self._logits_of = tf.function(self._logits, input_signature=[images], autograph=False)
        self._pixels = float(height * width)
        classes, count = self._num_classes, len(examples)
        self._scored = replica_sum([], tf.int64)
        self._summed_loss, self._denominator = replica_sum([], tf.float32), replica_sum([], tf.float32)
        self._confusion = replica_sum([count, classes, classes], tf.int64)
        self._totals = [self._scored, self._summed_loss, self._denominator, self._confusion]
        if details:
            self._boundaries = replica_sum([count, classes, 4], tf.int64)
            self._calibration = replica_sum([metrics.CALIBRATION_BINS, 3], tf.float64)
            self._totals += [self._boundaries, self._calibration]

    def evaluate(self) -> Evaluation | None:
        """Scores all examples; None if the pass was ended early."""
        batches, count = input_pipeline.distributed_evaluation_batches(
            self._strategy, self._examples, batch_size=self._batch_size
        )
        for total in self._totals:
            total.assign(tf.zeros_like(total))
        self._loop(iter(batches), tf.constant(count, tf.int64))
        scored, loss, denominator, *counts = (total.numpy() for total in self._totals)
        if scored < len(self._examples):
            return None
        return Evaluation(float(loss / denominator) if denominator else float("nan"), *counts)

    def evaluate_native(self, masks: Iterable[np.ndarray]) -> Evaluation | None:
        """Scores all examples at the sizes of masks that were never resized, to which the logits are upsampled.

        Needs `details`. Runs on one device; memory does not grow with the number of examples, but for their counts.

        Args:
          masks: uint8 [H, W, 1], class ids, any size, in the order of the examples.

        Returns:
          what was counted; None if the pass was ended early.
        """
        loss, denominator, counts = 0.0, 0.0, []
        calibration = np.zeros([metrics.CALIBRATION_BINS, 3])
        logits: list[tf.Tensor] = []
        for i, mask in enumerate(masks):
            if i % self._batch_size == 0:
                if self._stop.numpy():
                    return None
                logits = tf.unstack(self._logits_of(self._examples.images[i : i + self._batch_size]))
            resized = tf.image.resize(logits[i % self._batch_size][None], mask.shape[:2], method="bilinear")
            counted = self._count(tf.constant(mask)[None], resized, tf.constant([True]))
            loss, denominator = loss + float(counted["loss"]), denominator + float(counted["denominator"])
            calibration = calibration + counted["calibration"].numpy()
            counts.append((counted["confusion"].numpy()[0], counted["boundaries"].numpy()[0]))
        confusions, boundaries = (np.stack(each) for each in zip(*counts, strict=True))
        return Evaluation(loss / denominator if denominator else float("nan"), confusions, boundaries, calibration)

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class ids, int32 [B, H, W], and their probabilities, float32 [B, H, W], for images uint8 [B, H, W, 3]."""
        classes, confidence = self._predict(tf.constant(images))
        return classes.numpy(), confidence.numpy()

    def graph(self) -> tf.Graph:
        """The graph of `predict`."""
        return self._predict.get_concrete_function().graph

    def _classify(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        probabilities = tf.nn.softmax(self._logits(images))
        return tf.argmax(probabilities, axis=-1, output_type=tf.int32), tf.reduce_max(probabilities, axis=-1)

    def _logits(self, images: tf.Tensor) -> tf.Tensor:
        """Float32 [B, H, W, C] for images uint8 [B, H, W, 3]."""
        return inference.logits(self._model, images, flip_tta=self._flip_tta)

    @tf.function(reduce_retracing=True, autograph=False)
    def _loop(self, iterator: Any, count: tf.Tensor) -> None:
        def score(done: tf.Tensor) -> tuple[tf.Tensor]:
            self._strategy.run(self._replica_step, args=(next(iterator),))
            return (done + 1,)

        tf.while_loop(lambda done: (done < count) & (self._stop == 0), score, (tf.constant(0, tf.int64),))

    def _replica_step(self, batch: dict[str, tf.Tensor]) -> None:
        counted = self._count(batch["mask"], self._logits(batch["image"]), batch["valid"])
        self._summed_loss.assign_add(counted["loss"])
        self._denominator.assign_add(counted["denominator"])
        ids = batch["example_id"][:, None]  # of an example that only fills up a batch: 0, to which it adds nothing
        self._confusion.assign_add(tf.scatter_nd(ids, counted["confusion"], tf.shape(self._confusion, tf.int64)))
        if self._details:
            self._boundaries.assign_add(tf.scatter_nd(ids, counted["boundaries"], tf.shape(self._boundaries, tf.int64)))
            self._calibration.assign_add(counted["calibration"])
        self._scored.assign_add(tf.reduce_sum(tf.cast(batch["valid"], tf.int64)))

    def _count(self, masks: tf.Tensor, logits: tf.Tensor, counts: tf.Tensor) -> dict[str, tf.Tensor]:
        """What a batch adds to the totals; an example whose `counts` is False adds nothing."""
        counts, labels = counts[:, None, None], masks[..., 0]
        valid = sample_weights.valid_pixels(masks) & counts
        weights = self._weight_map(masks) * tf.cast(counts, tf.float32)
        loss, denominator = self._loss.sums(labels, logits, weights, valid)
        predictions = tf.argmax(logits, axis=-1, output_type=tf.int32)
        found = {
            "loss": loss / self._pixels,
            "denominator": denominator / self._pixels,
            "confusion": confusion_matrix.confusion_matrices(labels, predictions, valid, self._num_classes),
        }
        if self._details:
            tolerance = metrics.boundary_tolerance(*logits.shape[1:3])
            found["boundaries"] = metrics.boundary_counts(labels, predictions, valid, self._num_classes, tolerance)
            confidences = tf.reduce_max(tf.nn.softmax(logits), axis=-1)
            right = predictions == tf.cast(labels, tf.int32)
            found["calibration"] = metrics.calibration_counts(confidences, right, valid)
        return found
