"""Pixels counted by true and predicted class, on the device; every metric follows from these counts."""

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
