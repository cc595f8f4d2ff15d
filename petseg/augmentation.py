"""Random changes to training examples, on the device; image and mask move together.

Stateless: what happens to an example is a function of (seed, step, position in the global batch), so it is the same on
any number of replicas and after a restart.
"""

from collections.abc import Callable

import tensorflow as tf

Augmentation = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def augmentation(name: str, *, seed: int, batch_size: int) -> Augmentation:
    """The augmentation of a name.

    Args:
      name: "none" or "flip".
      seed: the run's seed.
      batch_size: global batch size. Randomness is drawn for all of it and each replica takes its own rows.

    Returns:
      a function (images, masks, step, positions) -> (images, masks), with images float32 [b, H, W, 3] in [0, 255],
      masks uint8 [b, H, W, 1], step int64 scalar and positions int64 [b].

    Raises:
      ValueError: if there is no augmentation of that name.
    """
    if name == "none":
        return lambda images, masks, step, positions: (images, masks)
    if name != "flip":
        raise ValueError(f"no augmentation {name!r}; there are 'none' and 'flip'")

    def augment(
        images: tf.Tensor, masks: tf.Tensor, step: tf.Tensor, positions: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        draw = tf.random.stateless_uniform([batch_size], seed=tf.stack([tf.constant(seed, tf.int64), step]))
        flipped = tf.gather(draw, positions) < 0.5
        return flip_left_right(images, flipped), flip_left_right(masks, flipped)

    return augment


def flip_left_right(images: tf.Tensor, flipped: tf.Tensor) -> tf.Tensor:
    """Mirrors the chosen images.

    Args:
      images: [b, H, W, C] of any dtype.
      flipped: bool [b].
    """
    return tf.where(flipped[:, None, None, None], tf.reverse(images, axis=[2]), images)
