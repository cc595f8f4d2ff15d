"""Forward pass shared by evaluation, prediction and export, with flip test-time augmentation."""

import keras
import tensorflow as tf


def logits(model: keras.Model, images: tf.Tensor, *, flip_tta: bool = False) -> tf.Tensor:
    """Logits of images in inference mode.

    Args:
      model: float32 images in [0, 255] -> float32 logits.
      images: uint8 or float32 [B, H, W, 3] in [0, 255].
      flip_tta: whether to average the probabilities of each image and its mirror image.

    Returns:
      float32 [B, H, W, C], whose softmax are the probabilities.
    """
    images = tf.cast(images, tf.float32)
    straight = model(images, training=False)
    if not flip_tta:
        return straight
    mirrored = tf.reverse(model(tf.reverse(images, [2]), training=False), [2])
    both = [tf.nn.log_softmax(straight), tf.nn.log_softmax(mirrored)]
    return tf.reduce_logsumexp(both, axis=0)  # log of the mean probability, up to a constant
