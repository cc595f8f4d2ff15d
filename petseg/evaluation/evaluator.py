"""Distributed evaluation of a split: every example is counted once, for any batch size and number of replicas."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from petseg.config import DataConfig
from petseg.data import input_pipeline
from petseg.data.bad_example_log import BadExampleLog
from petseg.data.examples import Examples
from petseg.errors import DataError
from petseg.evaluation import confidence_intervals, large_splits, metrics
from petseg.evaluation.evaluation import Evaluation
from petseg.evaluation.large_splits import LargeSplit
from petseg.models import inference
from petseg.training import confusion_matrix, sample_weights
from petseg.training.losses import Loss
from petseg.training.sample_weights import WeightMap
from petseg.training.variables import replica_sum

PADDING = -1  # in place of the id of an example


class Evaluator:
    """Scores a model on a split under a strategy. Must be constructed inside ``strategy.scope()``.

    The loss is the training loss without augmentation: same pixel weights, same normalisation.

    Attributes:
      loop: the compiled loop over batches, a `tf.function`.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        examples: Examples,
        weight_map: WeightMap,
        loss: Loss,
        data: DataConfig,
        *,
        stop: tf.Variable | None = None,
        flip_tta: bool = False,
        threshold: float = 0.0,
        details: bool = False,
    ):
        """Allocates the counters; compiles nothing yet.

        Args:
          model: the network, float32 images in [0, 255] -> float32 logits.
          data: its global batch size may be any number; `predict` runs on one device with a replica's batch size.
          stop: float32 variable; setting it to 1 from another thread ends a pass early.
          flip_tta: whether to average the probabilities of each image and its mirror image.
          details: whether to count boundaries, calibration and mask digests too.

        Raises:
          ConfigError: if there is a threshold, and not two classes with one foreground.
        """
        self._strategy = strategy
        self._model = model
        self._examples = examples
        self._weight_map = weight_map
        self._loss = loss
        self._data = data
        self._replica_batch_size = math.ceil(data.batch_size / strategy.num_replicas_in_sync)
        self._stop = tf.constant(0.0) if stop is None else stop
        self._flip_tta = flip_tta
        self._threshold = threshold
        self._foreground = examples.classes.binary_foreground() if threshold else 0
        self._image_spec = data.image_spec
        self._details = details
        self._bad_examples = BadExampleLog()
        _, height, width, self._num_classes = model.output_shape
        self._pixels = float(height * width)
        images = tf.TensorSpec([None, *model.input_shape[1:]], data.image_spec.travels_as, "images")
        # Per instance: a tf.function on the class keeps the graphs and models of all instances.
        self._predict = tf.function(
            lambda images: self._predictions(self._logits(images)), input_signature=[images], autograph=False
        )
        self.loop = tf.function(self._trace_loop, reduce_retracing=True, autograph=False)
        self._scored = replica_sum([], tf.int64)
        self._summed_loss, self._denominator = replica_sum([], tf.float32), replica_sum([], tf.float32)
        self._totals = [self._scored, self._summed_loss, self._denominator]
        self._is_large = large_splits.is_large(len(examples), self._num_classes)
        # Shapes of what is counted for each example, int64; it goes to the host with each batch.
        self._shapes_by_example = {"confusion": [self._num_classes] * 2}
        if details:
            self._shapes_by_example |= {"boundaries": [self._num_classes, 4], "mask_digests": []}
            self._calibration = replica_sum([metrics.CALIBRATION_BINS, 3], tf.float64)
            self._totals.append(self._calibration)

    def evaluate(self) -> Evaluation | None:
        """Scores all examples; None if the pass was stopped early.

        Raises DataError if an example that is decoded on demand is bad, or weights are too large to be counted.
        """
        batches, num_batches = input_pipeline.distributed_evaluation_batches(
            self._strategy,
            self._examples,
            batch_size=self._data.batch_size,
            bad_examples=self._bad_examples,
            example_bytes=self._data.example_bytes,
        )
        iterator, large = iter(batches), self._large_split()
        losses, calibration = np.zeros(2), np.zeros([metrics.CALIBRATION_BINS, 3])
        # A small split is one block of batches.
        replicas, total = self._strategy.num_replicas_in_sync, len(self._examples)
        batch = replicas * input_pipeline.evaluation_batch_of_replica(total, self._data.batch_size, replicas)
        block = max(1, large_splits.block_size(self._num_classes) // batch) if large else num_batches
        for start in range(0, num_batches, block):
            first, last = start * batch, min((start + block) * batch, total)
            (scored, loss, denominator, *more), by_example = self._score(iterator, min(block, num_batches - start))
            if scored < last - first:
                return None
            losses += loss, denominator
            calibration += sum(more)
            counts = self._in_order_of_examples(by_example, first, last - first)
            self._check_sums(first, counts["confusion"])
            if large:
                large.add(first, *counts.values())
        return self._evaluation(losses, counts, calibration if self._details else None, large)

    def _large_split(self) -> LargeSplit | None:
        """The totals of a split that is too large for counts of each example, before the first; else None."""
        if not self._is_large:
            return None
        return LargeSplit(
            len(self._examples),
            self._num_classes,
            resamples=confidence_intervals.RESAMPLES if self._details else 0,
            outlines=self._details,
        )

    def _score(self, iterator: Any, count: int) -> tuple[list[Any], dict[str, tf.Tensor]]:
        """Scores `count` batches; returns their totals, and what was counted for each example of this process."""
        for total in self._totals:
            total.assign(tf.zeros_like(total))
        with input_pipeline.naming_lost_files(self._examples):
            by_example = self.loop(iterator, tf.constant(count, tf.int64))
        self._bad_examples.raise_first(self._examples)
        return [total.numpy() for total in self._totals], by_example

    def _in_order_of_examples(self, counts: dict[str, tf.Tensor], first: int, count: int) -> dict[str, np.ndarray]:
        """The counts of `count` examples from `first` on, of all processes, without padding."""
        arrays = {name: self._of_all_processes(values) for name, values in counts.items()}
        ids = arrays.pop("example_id")
        ordered = {name: np.empty([count, *values.shape[1:]], np.int64) for name, values in arrays.items()}
        for name, values in arrays.items():
            ordered[name][ids[ids != PADDING] - first] = values[ids != PADDING]
        return ordered

    def _of_all_processes(self, values: tf.Tensor) -> np.ndarray:
        """Rows of all processes, one after the other."""
        if isinstance(self._strategy, tf.distribute.MultiWorkerMirroredStrategy):
            parts = iter(tf.split(values, len(self._strategy.extended.worker_devices)))  # one for each replica here
            distributed = self._strategy.experimental_distribute_values_from_function(lambda _: next(parts))
            values = self._strategy.gather(distributed, axis=0)
        return values.numpy()

    def evaluate_native(
        self, pairs: Iterable[tuple[np.ndarray, ...]], logits: Callable[[np.ndarray], tf.Tensor]
    ) -> Evaluation | None:
        """Scores all examples at native resolution, against the original masks, on one device.

        Needs `details`. Only the counts grow with the number of examples, up to `large_splits.most_rows`.

        Args:
          pairs: images in transport format [H, W, C], masks uint8 [H, W, 1] and, if there are any, weight maps
            [H, W, 1], of any size, in the order of the examples.
          logits: image -> float32 [H, W, C], as `AnySizeModel.logits`.

        Returns:
          the counts; None if the pass was stopped early.
        """
        rows = large_splits.block_size(self._num_classes) if self._is_large else len(self._examples)
        counts = {name: np.zeros([rows, *shape], np.int64) for name, shape in self._shapes_by_example.items()}
        losses, calibration = np.zeros(2), np.zeros([metrics.CALIBRATION_BINS, 3])
        large = self._large_split()
        for i, (image, *labels) in zip(range(len(self._examples)), pairs, strict=True):
            if self._stop.numpy():
                return None
            batch = {name: tf.constant(each)[None] for name, each in zip(("mask", "weight"), labels, strict=False)}
            maps = sample_weights.given(batch, self._data.weight_scale)
            of_image = self._counts(batch["mask"], logits(image)[None], tf.constant([True]), *maps)
            losses += float(of_image["loss"]), float(of_image["denominator"])
            calibration += of_image["calibration"].numpy()
            self._check_sums(i, of_image["confusion"].numpy())
            row = i % rows
            for name, values in counts.items():
                values[row] = of_image[name].numpy()[0]
            if large and (row + 1 == rows or i + 1 == len(self._examples)):
                large.add(i - row, *(values[: row + 1] for values in counts.values()))
        return self._evaluation(losses, counts, calibration, large)

    def _check_sums(self, first: int, matrices: np.ndarray) -> None:
        """Raises DataError if weighted counts [K, C, C], of examples from `first` on, are beyond exact integers."""
        most = min(confusion_matrix.MOST_OF_IMAGE, confusion_matrix.MOST // len(self._examples))
        sums = matrices.sum((1, 2), dtype=np.float64)
        if self._data.score_weights and sums.max() > most:
            worst = int(sums.argmax())
            (name,) = self._examples.names_of([first + worst])
            found, bound = (f"{value / confusion_matrix.UNIT:.3g}" for value in (sums[worst], most))
            raise DataError(
                f"--score_weights: {name}: the weights of its pixels add up to {found} or more; must be at most "
                f"{bound} with {len(self._examples)} examples, so that sums are exact; in train.py "
                "--weight_scale=NUMBER divides them"
            )

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class ids, int32 [B, H, W], and their probabilities, float32 [B, H, W], for images [B, H, W, C]."""
        if not len(images):  # a oneDNN convolution returns a wrong shape for an empty batch
            return np.zeros(images.shape[:3], np.int32), np.zeros(images.shape[:3], np.float32)
        size = self._replica_batch_size
        parts = [self._predict(tf.constant(images[i : i + size])) for i in range(0, len(images), size)]
        classes, confidences = zip(*parts, strict=True)
        return np.concatenate(classes), np.concatenate(confidences)

    def graph(self) -> tf.Graph:
        """The graph of `predict`."""
        return self._predict.get_concrete_function().graph

    def _predictions(self, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Predicted class ids int32 [B, H, W] and their probabilities float32 [B, H, W]."""
        probabilities = tf.nn.softmax(logits)
        if not self._threshold:
            return tf.argmax(logits, axis=-1, output_type=tf.int32), tf.reduce_max(probabilities, axis=-1)
        target, other = probabilities[..., self._foreground], probabilities[..., 1 - self._foreground]
        is_target = target >= self._threshold
        classes = tf.cast(is_target if self._foreground else ~is_target, tf.int32)
        return classes, tf.where(is_target, target, other)

    def _logits(self, images: tf.Tensor) -> tf.Tensor:
        """Float32 [B, H, W, C] for images [B, H, W, C] in transport format."""
        return inference.logits(self._model, images, flip_tta=self._flip_tta, image_spec=self._image_spec)

    def _trace_loop(self, iterator: Any, count: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores batches; returns, on the host, the counts and the ids of the examples that this process had."""
        shapes = {**self._shapes_by_example, "example_id": []}

        def score(done: tf.Tensor, arrays: dict[str, tf.TensorArray]) -> tuple[tf.Tensor, dict[str, tf.TensorArray]]:
            counts = self._strategy.run(self._replica_step, args=(next(iterator),))
            with tf.device("cpu:0"):
                rows = {name: tf.concat(self._strategy.experimental_local_results(counts[name]), 0) for name in shapes}
                arrays = {name: array.write(tf.cast(done, tf.int32), rows[name]) for name, array in arrays.items()}
            return done + 1, arrays

        def is_running(done: tf.Tensor, _: Any) -> tf.Tensor:
            return (done < count) & (self._stop == 0)

        with tf.device("cpu:0"):
            arrays = {
                name: tf.TensorArray(tf.int64, 0, True, infer_shape=False, element_shape=[None, *shape])
                for name, shape in shapes.items()
            }
        _, arrays = tf.while_loop(is_running, score, (tf.constant(0, tf.int64), arrays))
        with tf.device("cpu:0"):
            return {name: array.concat() for name, array in arrays.items()}

    def _replica_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Adds a replica's part of a batch to the totals; returns the counts by example."""
        maps = sample_weights.given(batch, self._data.weight_scale)
        counts = self._counts(batch["mask"], self._logits(batch["image"]), batch["valid"], *maps)
        self._summed_loss.assign_add(counts["loss"])
        self._denominator.assign_add(counts["denominator"])
        if self._details:
            self._calibration.assign_add(counts["calibration"])
        self._scored.assign_add(tf.reduce_sum(tf.cast(batch["valid"], tf.int64)))
        return {
            "example_id": tf.where(batch["valid"], batch["example_id"], PADDING),
            **{name: counts[name] for name in self._shapes_by_example},
        }

    def _counts(
        self, masks: tf.Tensor, logits: tf.Tensor, is_counted: tf.Tensor, *maps: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Contributions of a batch to the counters; padding, where `is_counted` is False, contributes nothing."""
        is_counted, labels = is_counted[:, None, None], masks[..., 0]
        valid = sample_weights.valid_pixels(masks) & is_counted
        weights = self._weight_map(masks, *maps) * tf.cast(is_counted, tf.float32)
        loss, denominator = self._loss.sums(labels, logits, weights, valid)
        predictions, confidences = self._predictions(logits)
        scored = (maps[0][..., 0] if maps else tf.ones_like(weights)) if self._data.score_weights else None
        counts = {
            "loss": loss / self._pixels,
            "denominator": denominator / self._pixels,
            "confusion": confusion_matrix.confusion_matrices(labels, predictions, valid, self._num_classes, scored),
        }
        if self._details:
            tolerance = metrics.boundary_tolerance(*logits.shape[1:3])
            counts["boundaries"] = metrics.boundary_counts(labels, predictions, valid, self._num_classes, tolerance)
            counts["mask_digests"] = _mask_digests(masks, scored)
            right = tf.cast(predictions, tf.int64) == tf.cast(labels, tf.int64)  # a GPU compares int32 on the host
            counts["calibration"] = metrics.calibration_counts(confidences, right, valid)
        return counts

    def _evaluation(
        self,
        losses: np.ndarray,
        counts: dict[str, np.ndarray],
        calibration: np.ndarray | None,
        large: LargeSplit | None,
    ) -> Evaluation:
        """An evaluation from summed loss and denominator, counts by example, and the totals of a large split."""
        loss = float(losses[0] / losses[1]) if losses[1] else math.nan
        unit = confusion_matrix.UNIT if self._data.score_weights else 1
        if large:
            return Evaluation(loss, large.confusion_matrices, large.boundaries, calibration, large, unit=unit)
        boundaries, digests = counts.get("boundaries"), counts.get("mask_digests")
        return Evaluation(loss, counts["confusion"], boundaries, calibration, None, digests, unit)


def _mask_digests(masks: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """Hashes of masks uint8 [B, H, W, 1], and of weights [B, H, W] if scores count them: int64 [B].

    They are sums weighted by pseudo-random numbers that depend on the size.
    """
    _, height, width, _ = masks.shape
    factors = tf.random.stateless_uniform([height * width], [height, width], None, None, tf.int64, alg="philox")
    labels = tf.cast(tf.reshape(masks, [-1, height * width]), tf.int64) + 1
    if weights is not None:
        labels += tf.cast(tf.bitcast(tf.reshape(weights, [-1, height * width]), tf.int32), tf.int64) * 256
    return tf.reduce_sum(labels * factors, axis=1)
