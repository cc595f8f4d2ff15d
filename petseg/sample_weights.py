"""Masks -> per-pixel weight maps.

The place to change how much a pixel counts: whatever `sample_weight_map` returns multiplies the loss of its pixel.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

IGNORED = 255  # class id of a pixel that is in no class: weight 0, counted nowhere


def sample_weight_map(mask: tf.Tensor, class_weights: Sequence[float] | None) -> tf.Tensor:
    """The weight of each pixel: that of its class, and 0 where the pixel is not valid.

    Args:
      mask: uint8 [B, H, W, 1], class ids or IGNORED.
      class_weights: one number per class, or None for 1 everywhere.

    Returns:
      float32 [B, H, W].
    """
    valid = tf.cast(valid_pixels(mask), tf.float32)
    if class_weights is None:
        return valid
    table = tf.constant(class_weights, tf.float32)
    ids = tf.minimum(tf.cast(mask[..., 0], tf.int32), len(class_weights) - 1)
    return tf.gather(table, ids) * valid


def valid_pixels(mask: tf.Tensor) -> tf.Tensor:
    """bool [B, H, W]: which pixels of uint8 [B, H, W, 1] belong to a class."""
    return mask[..., 0] != IGNORED


def normalized(class_weights: Sequence[float]) -> tuple[float, ...]:
    """Weights scaled to sum to 1."""
    total = sum(class_weights)
    return tuple(weight / total for weight in class_weights)


def balanced(masks: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """Weights in inverse proportion to how many pixels a class has, summing to 1; 0 for a class with none.

    Args:
      masks: uint8 [N, H, W, 1], class ids or IGNORED.
      num_classes: number of classes C.

    Returns:
      C weights.
    """
    counts = np.bincount(masks.reshape(-1), minlength=256)[:num_classes].astype(np.float64)
    inverse = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    return normalized(inverse.tolist())
