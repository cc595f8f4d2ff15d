"""CutMix (Yun et al. 2019; French et al. 2020 for segmentation): a rectangle of another image, with its mask.

    python train.py --augment=examples/cutmix.py:augment --flip=0.5

The other image is the neighbour in the batch (0 and 1, 2 and 3, ...), so that the images do not depend on the number of
replicas, as long as each has an even share of the batch.
"""

import tensorflow as tf

from petseg.errors import ConfigError

SHARE = 0.5  # of the images that are changed


def augment(images: tf.Tensor, masks: tf.Tensor, seeds: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Images float32 [b, H, W, C], masks uint8 and weights float32 [b, H, W, 1]; a function of the seeds, int32 [b, 2].

    The weights are the data's weight maps (--weight_files), or ones.
    """
    _, height, width, _ = images.shape
    drawn = tf.map_fn(lambda seed: tf.random.stateless_uniform([4], seed), seeds, tf.float32)
    mixed, area, y, x = tf.unstack(drawn, axis=1)
    side = tf.sqrt(area) / 2  # half the side of a rectangle whose area is uniform in [0, 1)
    rows = tf.abs((tf.range(height, dtype=tf.float32) + 0.5) / height - y[:, None]) < side[:, None]
    columns = tf.abs((tf.range(width, dtype=tf.float32) + 0.5) / width - x[:, None]) < side[:, None]
    inside = (rows[:, :, None] & columns[:, None, :] & (mixed < SHARE)[:, None, None])[..., None]
    return tuple(tf.where(inside, _swapped(part), part) for part in (images, masks, weights))


def _swapped(batch: tf.Tensor) -> tf.Tensor:
    """Each example's neighbour."""
    if batch.shape[0] % 2:
        raise ConfigError(f"--batch_size: each replica and micro-batch must get an even number; gets {batch.shape[0]}")
    pairs = tf.reshape(batch, [-1, 2, *batch.shape[1:]])
    return tf.reshape(tf.reverse(pairs, axis=[1]), batch.shape)
