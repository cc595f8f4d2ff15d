"""Confusion matrices, computed on the device; all metrics derive from them."""

import tensorflow as tf
from tensorflow.python.framework import config as tf_config  # the public API can only switch determinism on

UNIT = 2**16  # of weighted counts: integers, whose sums are the same in any order
MOST_OF_IMAGE, MOST = 2**53, 2**62  # sums of an image, in float64, and of all images, in int64


def confusion_matrices(
    labels: tf.Tensor, predictions: tf.Tensor, valid: tf.Tensor, num_classes: int, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Counts the pixels of each image by (true class, predicted class).

    Args:
      valid: bool [B, H, W]; False at ignored pixels, which are not counted.
      weights: float32 [B, H, W], weight of each pixel, rounded to multiples of 1 / UNIT; None: each counts 1.

    Returns:
      int64 [B, C, C], true (rows) by predicted class (columns); with `weights`, multiples of 1 / UNIT.
    """
    images, cells = tf.shape(labels, tf.int64)[0], num_classes**2
    # In int64: TensorFlow places int32 arithmetic on the host even if there is a GPU.
    pairs = tf.cast(labels, tf.int64) * num_classes + tf.cast(predictions, tf.int64)
    pairs += (tf.range(images) * cells)[:, None, None]
    numbers = tf.reshape(tf.where(valid, pairs, images * cells), [-1])
    if weights is None:
        counts = _histogram(numbers, images * cells)
    else:  # integers below 2**53 in float64, for which GPUs have a kernel: exact sums in any order
        units = tf.reshape(tf.round(tf.cast(weights, tf.float64) * UNIT), [-1])
        sums = tf.math.unsorted_segment_sum(units, numbers, images * cells + 1)[:-1]
        counts = tf.cast(tf.minimum(sums, float(MOST)), tf.int64)
    return tf.reshape(counts, [images, num_classes, num_classes])


def _histogram(numbers: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Number of occurrences of 0 .. size - 1, int64 [size]; the number `size` may occur and is not counted.

    Counted in int32, because neither operation has an int64 kernel for GPUs; but a GPU slices int32 on the host.
    """
    if tf_config.is_op_determinism_enabled():  # a GPU then refuses DenseBincount, which is faster on a CPU
        counts = tf.math.unsorted_segment_sum(tf.cast(numbers < size, tf.int32), numbers, size + 1)
    else:  # not `tf.math.bincount`, which computes the maximum first
        none = tf.constant([], tf.int32)
        counts = tf.raw_ops.DenseBincount(input=numbers, size=size + 1, weights=none, binary_output=False)
    return tf.cast(counts, tf.int64)[:-1]
