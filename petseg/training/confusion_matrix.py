"""Pixels counted by true and predicted class, on the device; every metric follows from these counts."""

import tensorflow as tf
from tensorflow.python.framework import config as tf_config  # the public API can only switch determinism on


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
    images, cells = tf.shape(labels, tf.int64)[0], num_classes**2
    # In int64: TensorFlow computes with int32 on the host, also where there is a GPU.
    pairs = tf.cast(labels, tf.int64) * num_classes + tf.cast(predictions, tf.int64)
    pairs += (tf.range(images) * cells)[:, None, None]
    counts = _histogram(tf.reshape(tf.where(valid, pairs, images * cells), [-1]), images * cells)
    return tf.reshape(tf.cast(counts, tf.int64), [images, num_classes, num_classes])


def _histogram(numbers: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """How often each of the numbers 0 .. size - 1 occurs, int32 [size]; `size` itself may occur and is not counted.

    In int32, since neither operation counts in int64 on a GPU.
    """
    if tf_config.is_op_determinism_enabled():  # under which a GPU refuses the other one, which is faster on a CPU
        return tf.math.unsorted_segment_sum(tf.cast(numbers < size, tf.int32), numbers, size + 1)[:-1]
    none = tf.constant([], tf.int32)
    # Not `tf.math.bincount`, which looks for the largest number first.
    return tf.raw_ops.DenseBincount(input=numbers, size=size + 1, weights=none, binary_output=False)[:-1]
