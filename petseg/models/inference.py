"""Forward pass shared by training, evaluation, prediction and export: input scaling, flips, ensembles."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from petseg.config.image_spec import PLAIN, ImageSpec


def to_floats(images: tf.Tensor, spec: ImageSpec) -> tf.Tensor:
    """Images in transport format as float32 [B, H, W, C]: the intensity range is scaled to [0, 255]."""
    images = tf.cast(images, tf.float32)
    if spec.is_plain:
        return images
    low, high = (tf.constant(value) for value in spec.device_range)
    return tf.clip_by_value((images - low) * (255.0 / (high - low)), 0.0, 255.0)


def logits(
    model: keras.Model, images: tf.Tensor, *, flip_tta: bool = False, image_spec: ImageSpec = PLAIN
) -> tf.Tensor:
    """Logits of images in inference mode.

    Args:
      model: float32 images in [0, 255] -> float32 logits.
      images: [B, H, W, C] in transport format.
      flip_tta: whether to average the probabilities of each image and its mirror image.
      image_spec: transport format of the images.

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


class ProbabilityAverage(keras.Model):
    """A network that averages the class probabilities of others of the same input and classes, for inference.

    Attributes:
      members: the networks, float32 images -> float32 logits.
    """

    def __init__(self, members: Sequence[keras.Model]):
        super().__init__(dtype="float32")
        self.members = list(members)

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        return self.members[0].input_shape

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        return self.members[0].output_shape

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Logits, up to a constant, whose softmax is the mean of the probabilities."""
        probabilities = [tf.nn.log_softmax(member(images, training=False)) for member in self.members]
        return tf.reduce_logsumexp(probabilities, axis=0)
