"""Scales images in transport format to the floats that networks take."""

import tensorflow as tf

from petseg.config.image_spec import ImageSpec


def to_floats(images: tf.Tensor, spec: ImageSpec) -> tf.Tensor:
    """Images in transport format as float32 [B, H, W, C]: the intensity range is scaled to [0, 255]."""
    images = tf.cast(images, tf.float32)
    if spec.is_plain:
        return images
    low, high = (tf.constant(value) for value in spec.device_range)
    return tf.clip_by_value((images - low) * (255.0 / (high - low)), 0.0, 255.0)
