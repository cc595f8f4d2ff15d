"""Per-pixel losses, unreduced, and their weighted sums.

A loss leaves here as a sum; whoever knows the global batch divides once.
"""

import tensorflow as tf


def sparse_categorical_crossentropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of each pixel: log(sum(exp(logits))) - logits[label].

    Args:
      labels: integer [B, H, W], class ids. A pixel that is in no class may hold any number; its loss means nothing and
        must get weight 0.
      logits: float32 [B, H, W, C].

    Returns:
      float32 [B, H, W].
    """
    in_range = tf.clip_by_value(tf.cast(labels, tf.int32), 0, logits.shape[-1] - 1)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(in_range, logits)


def weighted_sum(losses: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Sum of weight x loss, both float32 [B, H, W]; weight 0 silences even an infinite loss."""
    return tf.reduce_sum(tf.math.multiply_no_nan(losses, weights))
