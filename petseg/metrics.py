"""Segmentation metrics, all derived from confusion matrices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def confusion_matrices(labels: tf.Tensor, predictions: tf.Tensor, valid: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Counts the pixels of each image by (true class, predicted class).

    Args:
      labels: integer [B, H, W], class ids.
      predictions: integer [B, H, W], class ids.
      valid: bool [B, H, W]; other pixels are not counted.
      num_classes: number of classes C.

    Returns:
      int64 [B, C, C], rows true, columns predicted.
    """
    images, cells = tf.shape(labels)[0], num_classes**2
    pairs = tf.cast(labels, tf.int32) * num_classes + tf.cast(predictions, tf.int32)
    pairs += (tf.range(images) * cells)[:, None, None]
    pairs = tf.reshape(tf.where(valid, pairs, images * cells), [-1])
    counts = tf.math.bincount(pairs, minlength=images * cells + 1, maxlength=images * cells + 1, dtype=tf.int64)
    return tf.reshape(counts[:-1], [images, num_classes, num_classes])


def from_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, IoU (Jaccard), Dice (F1), precision and recall.

    A ratio whose denominator is 0 is NaN, and `mean_iou` averages over the classes that occur in truth or prediction,
    as `keras.metrics.MeanIoU` does.

    Args:
      matrix: int64 [C, C], rows true, columns predicted.
      class_names: C names.

    Returns:
      `accuracy` and `mean_iou` as numbers; `iou`, `dice`, `precision` and `recall` as dictionaries by class name.
    """
    counts = np.asarray(matrix, np.float64)
    hit, true, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    by_class = {
        "iou": iou(matrix),
        "dice": _ratio(2 * hit, true + predicted),
        "precision": _ratio(hit, predicted),
        "recall": _ratio(hit, true),
    }
    return {
        "accuracy": float(_ratio(hit.sum(), counts.sum())),
        "mean_iou": float(mean_iou(matrix)),
        **{name: dict(zip(class_names, values.tolist(), strict=True)) for name, values in by_class.items()},
    }


def iou(matrices: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, float64 [..., C], of confusion matrices [..., C, C]; NaN for 0 over 0."""
    counts = np.asarray(matrices, np.float64)
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    return _ratio(hit, counts.sum(-1) + counts.sum(-2) - hit)


def mean_iou(matrices: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur in truth or prediction, float64 [...], of confusion matrices [..., C, C]."""
    by_class = iou(matrices)
    occurs = ~np.isnan(by_class)
    return _ratio(np.where(occurs, by_class, 0.0).sum(-1), occurs.sum(-1).astype(np.float64))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full_like(denominator, np.nan), where=denominator > 0)
