"""Segmentation metrics, all derived from one confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def confusion_matrix(labels: tf.Tensor, predictions: tf.Tensor, valid: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Counts pixels by (true class, predicted class).

    Args:
      labels: integer [B, H, W], class ids.
      predictions: integer [B, H, W], class ids.
      valid: bool [B, H, W]; other pixels are not counted.
      num_classes: number of classes C.

    Returns:
      int64 [C, C], rows true, columns predicted.
    """
    pairs = tf.cast(labels, tf.int32) * num_classes + tf.cast(predictions, tf.int32)
    pairs = tf.reshape(tf.where(valid, pairs, num_classes * num_classes), [-1])
    counts = tf.math.bincount(pairs, minlength=num_classes**2 + 1, maxlength=num_classes**2 + 1, dtype=tf.int64)
    return tf.reshape(counts[:-1], [num_classes, num_classes])


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
        "iou": _ratio(hit, true + predicted - hit),
        "dice": _ratio(2 * hit, true + predicted),
        "precision": _ratio(hit, predicted),
        "recall": _ratio(hit, true),
    }
    occurs = (true + predicted) > 0
    return {
        "accuracy": float(_ratio(hit.sum(), counts.sum())),
        "mean_iou": float(by_class["iou"][occurs].mean()) if occurs.any() else float("nan"),
        **{name: dict(zip(class_names, values.tolist(), strict=True)) for name, values in by_class.items()},
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full_like(denominator, np.nan), where=denominator > 0)
