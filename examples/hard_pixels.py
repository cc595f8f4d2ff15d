"""Online hard example mining (Shrivastava, Gupta and Girshick 2016): the quarter of each image with the highest loss.

python train.py --loss=examples/hard_pixels.py:loss
"""

import tensorflow as tf

SHARE = 0.25


def loss(labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The summed loss of the hard pixels and their number, float32 scalars; petseg divides once, over all replicas."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits) * weights
    of_images = tf.reshape(losses, [tf.shape(losses)[0], -1])
    count = max(1, int(SHARE * losses.shape[1] * losses.shape[2]))
    smallest = tf.math.top_k(of_images, count).values[:, -1]
    hard = tf.cast((losses >= smallest[:, None, None]) & (weights > 0), tf.float32)
    return tf.reduce_sum(losses * hard), tf.reduce_sum(hard)
