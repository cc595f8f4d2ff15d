"""Segmentation metrics: of confusion matrices, of outlines, of confidences."""

import math
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from petseg.classes import Classes

CALIBRATION_BINS = 15


def from_confusion_matrix(matrix: np.ndarray, classes: Classes) -> dict[str, Any]:
    """Accuracy, IoU (Jaccard), Dice (F1), precision and recall.

    A ratio whose denominator is 0 is NaN, and `mean_iou` averages over the classes that occur in truth or prediction,
    as `keras.metrics.MeanIoU` does.

    Args:
      matrix: int64 [C, C], rows true, columns predicted.
      classes: the C classes.

    Returns:
      `accuracy`, `mean_iou` and, where classes are foreground, `foreground_iou` as numbers; `iou`, `dice`, `precision`
      and `recall` as dictionaries by class name.
    """
    counts = np.asarray(matrix, np.float64)
    hit, true, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    by_class = {
        "iou": iou(matrix),
        "dice": ratio(2 * hit, true + predicted),
        "precision": ratio(hit, predicted),
        "recall": ratio(hit, true),
    }
    return {
        "accuracy": float(ratio(hit.sum(), counts.sum())),
        "mean_iou": float(mean_iou(matrix)),
        **({"foreground_iou": foreground_iou(matrix, classes)} if classes.foreground_name else {}),
        **{name: dict(zip(classes.names, values.tolist(), strict=True)) for name, values in by_class.items()},
    }


def boundary_counts(
    labels: tf.Tensor, predictions: tf.Tensor, valid: tf.Tensor, num_classes: int, tolerance: int
) -> tf.Tensor:
    """Counts the pixels on the outlines of classes, and how many of them have the other outline nearby.

    A pixel is on the outline of its class if one of its four neighbours is of another. What lies at the edge of the
    image, or at pixels without a class, is no outline. After Perazzi et al., "A Benchmark Dataset and Evaluation
    Methodology for Video Object Segmentation" (DAVIS), 2016, with a square in place of the disk.

    Args:
      labels: integer [B, H, W], class ids.
      predictions: integer [B, H, W], class ids.
      valid: bool [B, H, W].
      num_classes: number of classes C.
      tolerance: how far two pixels that match may lie apart, in pixels, across or down.

    Returns:
      int64 [B, C, 4]: predicted, predicted and matched, true, true and matched.
    """
    predictions, labels = (tf.cast(ids, tf.uint8) for ids in (predictions, labels))  # int32 is left to the host
    known = valid & _same_as_neighbours(valid)
    outlines = [known & ~_same_as_neighbours(ids) for ids in (predictions, labels)]

    def counts_of(number: tf.Tensor) -> tf.Tensor:
        """Int64 [B, 4] for one class; the maps of all classes at once would not fit a large photograph's memory."""
        predicted, true = (
            outline & (ids == number) for outline, ids in zip(outlines, (predictions, labels), strict=True)
        )
        near_predicted, near_true = (_grown(outline, tolerance) for outline in (predicted, true))
        counted = (predicted, predicted & near_true, true, true & near_predicted)
        return tf.stack([_count_true(each) for each in counted], axis=-1)

    classes = tf.cast(tf.range(num_classes), tf.uint8)
    by_class = tf.map_fn(counts_of, classes, parallel_iterations=1, fn_output_signature=tf.int64)
    return tf.transpose(by_class, [1, 0, 2])


def _same_as_neighbours(ids: tf.Tensor) -> tf.Tensor:
    """Whether a pixel equals those above, below, left and right of it, as far as there are any; bool [B, H, W]."""
    down, across = ids[:, 1:] == ids[:, :-1], ids[:, :, 1:] == ids[:, :, :-1]
    pads = [[0, 0], [1, 0], [0, 0]], [[0, 0], [0, 1], [0, 0]], [[0, 0], [0, 0], [1, 0]], [[0, 0], [0, 0], [0, 1]]
    above, below, left, right = (
        tf.pad(same, pad, constant_values=True) for same, pad in zip((down, down, across, across), pads, strict=True)
    )
    return above & below & left & right


def _grown(marked: tf.Tensor, reach: int) -> tf.Tensor:
    """What lies at most `reach` pixels across and down from a marked one, bool [B, H, W]; a square is grown by axis.

    A window of n pixels is made of windows of half as many, so the work grows with log(reach).
    """
    for axis in (1, 2):
        pads = [[0, 0], [0, 0], [0, 0]]
        pads[axis] = [reach, reach]
        size, window = tf.shape(marked)[axis], 1
        marked = tf.pad(marked, pads)
        while 2 * window <= 2 * reach + 1:
            marked = _part(marked, axis, 0, -window) | _part(marked, axis, window, None)
            window *= 2
        last = 2 * reach + 1 - window
        marked = _part(marked, axis, 0, size) | _part(marked, axis, last, last + size)
    return marked


def _part(values: tf.Tensor, axis: int, begin: Any, end: Any) -> tf.Tensor:
    return values[:, begin:end] if axis == 1 else values[:, :, begin:end]


def _count_true(marked: tf.Tensor) -> tf.Tensor:
    """How many pixels of each image are marked, int64 [B]."""
    rows = tf.reduce_sum(tf.cast(marked, tf.float32), axis=2)  # exact: a row is shorter than 2**24
    return tf.reduce_sum(tf.cast(rows, tf.int64), axis=1)


def boundary_tolerance(height: int, width: int) -> int:
    """The tolerance of DAVIS: 0.8% of the diagonal, at least one pixel."""
    return max(1, round(0.008 * math.hypot(height, width)))


def boundary_f_scores(counts: np.ndarray) -> np.ndarray:
    """Harmonic mean of precision and recall of outlines, float64 [...], of counts [..., 4]; NaN without an outline."""
    predicted, predicted_matched, true, true_matched = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    precision, recall = ratio(predicted_matched, predicted), ratio(true_matched, true)
    missed = (predicted > 0) != (true > 0)  # one of the two has no outline: nothing of the other's is found
    precision, recall = np.where(missed, 0.0, precision), np.where(missed, 0.0, recall)
    return np.where(precision + recall == 0, 0.0, ratio(2 * precision * recall, precision + recall))


def calibration_counts(confidences: tf.Tensor, correct: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Sorts pixels into bins by the probability of their predicted class.

    Args:
      confidences: float32 [B, H, W] in [0, 1].
      correct: bool [B, H, W].
      valid: bool [B, H, W]; other pixels are not counted.

    Returns:
      float64 [CALIBRATION_BINS, 3]: pixels, sum of confidences, right pixels.
    """
    bins = tf.clip_by_value(tf.cast(confidences * CALIBRATION_BINS, tf.int32), 0, CALIBRATION_BINS - 1)
    bins = tf.reshape(tf.where(valid, bins, CALIBRATION_BINS), [-1])
    columns = (tf.ones_like(confidences), confidences, tf.cast(correct, tf.float32))
    size = CALIBRATION_BINS + 1
    sums = [
        tf.math.bincount(bins, tf.cast(tf.reshape(column, [-1]), tf.float64), minlength=size, maxlength=size)[:-1]
        for column in columns
    ]
    return tf.stack(sums, axis=-1)


def calibration_error(counts: np.ndarray) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over the bins, weighted by their pixels.

    After Guo et al., "On Calibration of Modern Neural Networks", 2017, with `CALIBRATION_BINS` equal bins.

    Args:
      counts: [CALIBRATION_BINS, 3], as `calibration_counts`.
    """
    pixels, confidence, right = np.asarray(counts, np.float64).T
    return float(np.abs(confidence - right).sum() / pixels.sum()) if pixels.sum() else float("nan")


def foreground_iou(matrix: np.ndarray, classes: Classes, *, without_borders: bool = False) -> float:
    """IoU of all that is foreground against the rest, as binary benchmarks score it.

    Args:
      matrix: int64 [C, C], rows true, columns predicted.
      classes: the C classes; what is at least half foreground counts as foreground, so a border does.
      without_borders: whether pixels that truly are of a border are left out. Where a border is predicted elsewhere, it
        still counts as foreground.
    """
    matrix, is_foreground = np.asarray(matrix, np.float64).copy(), classes.foreground >= 0.5
    if without_borders:
        matrix[classes.borders] = 0
    hit = matrix[np.ix_(is_foreground, is_foreground)].sum()
    return float(ratio(hit, matrix[is_foreground].sum() + matrix[:, is_foreground].sum() - hit))


def iou(matrices: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, float64 [..., C], of confusion matrices [..., C, C]; NaN for 0 over 0."""
    return ratio(*intersections_and_unions(matrices))


def intersections_and_unions(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each class that were found, and those that are of it in truth or prediction; [..., C] each."""
    counts = np.asarray(matrices)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    return hit, counts.sum(-1) + counts.sum(-2) - hit


def mean_iou(matrices: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur in truth or prediction, float64 [...], of confusion matrices [..., C, C]."""
    return mean_over_classes(iou(matrices))


def mean_over_classes(scores: np.ndarray) -> np.ndarray:
    """Mean over those classes that have a score, float64 [...], of scores [..., C], where the others are NaN."""
    occurs = ~np.isnan(scores)
    return ratio(np.where(occurs, scores, 0.0).sum(-1), occurs.sum(-1))


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """Float64; NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)
