"""Lovász-softmax loss (Berman, Triki and Blaschko 2018): a convex surrogate of the mean IoU, per image.

python train.py --loss=examples/lovasz_softmax.py:loss
"""

import tensorflow as tf


def loss(labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Loss of each image, float32 [B], averaged over the classes that occur in it."""
    batch, classes = tf.shape(logits)[0], logits.shape[-1]
    counted = tf.reshape(tf.cast(weights > 0, tf.float32), [batch, -1, 1])
    truth = tf.one_hot(tf.reshape(labels, [batch, -1]), classes) * counted
    errors = tf.abs(truth - tf.reshape(tf.nn.softmax(logits), [batch, -1, classes])) * counted
    errors, truth = (tf.transpose(part, [0, 2, 1]) for part in (errors, truth))  # [B, C, pixels]
    order = tf.argsort(errors, direction="DESCENDING", stable=True)
    errors, truth = (tf.gather(part, order, batch_dims=2) for part in (errors, truth))
    area = tf.reduce_sum(truth, axis=-1, keepdims=True)
    jaccard = 1 - (area - tf.cumsum(truth, axis=-1)) / (area + tf.cumsum(1 - truth, axis=-1))
    slopes = tf.concat([jaccard[..., :1], jaccard[..., 1:] - jaccard[..., :-1]], axis=-1)
    of_classes = tf.reduce_sum(errors * tf.stop_gradient(slopes), axis=-1)
    occurs = tf.cast(area[..., 0] > 0, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(of_classes * occurs, axis=-1), tf.reduce_sum(occurs, axis=-1))
