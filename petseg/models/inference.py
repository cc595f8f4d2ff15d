"""Forward pass shared by evaluation, prediction and export, with flip test-time augmentation."""

import keras
import tensorflow as tf

from petseg.config.image_spec import PLAIN, ImageSpec
from petseg.models.intensity import to_floats


def logits(
    model: keras.Model, images: tf.Tensor, *, flip_tta: bool = False, image_spec: ImageSpec = PLAIN
) -> tf.Tensor:
    """Logits of images in inference mode.

    Args:
      model: float32 images in [0, 255] -> float32 logits.
      images: [B, H, W, C] as images travel.
      flip_tta: whether to average the probabilities of each image and its mirror image.
      image_spec: how images travel.

    Returns:
      float32 [B, H, W, C], whose softmax are the probabilities.
    """
    images = to_floats(images, image_spec)
    straight = model(images, training=False)
    if not flip_tta:
        return straight
    mirrored = tf.reverse(model(tf.reverse(images, [2]), training=False), [2])
    both = [tf.nn.log_softmax(straight), tf.nn.log_softmax(mirrored)]
    return tf.reduce_logsumexp(both, axis=0)  # log of the mean probability, up to a constant
