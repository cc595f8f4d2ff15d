"""Sharpness-aware minimisation (Foret et al. 2021): the gradient is taken where the loss near the weights is highest.

    python train.py --step=examples/sharpness_aware.py:SharpnessAware

A step costs two passes and a second all-reduce, because the point depends on the whole batch. With a point for each
replica, as in the paper, the result would depend on their number.
"""

import tensorflow as tf

from petseg.training.trainer import Trainer

RHO = 0.05  # distance of the point from the weights


class SharpnessAware(Trainer):
    """Replaces the second pass's weights, so that the gradient of the weights is the one at the point."""

    def forward(self, images, masks, weights, valid):
        trained, others = self.model.trainable_variables, self.model.non_trainable_variables
        with tf.GradientTape() as tape:
            _, loss, _ = super().forward(images, masks, weights, valid)
            scaled = loss / tf.cast(tf.size(weights), tf.float32) * self.loss_scale.value()
        gradients = tape.gradient(scaled, trained, unconnected_gradients="zero")
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, [tf.cast(each, tf.float32) for each in gradients])
        step = tf.math.divide_no_nan(RHO, tf.linalg.global_norm(gradients))
        point = [v.value + tf.stop_gradient(step * each) for v, each in zip(trained, gradients, strict=True)]
        # Moving statistics follow the first pass; what the second would make of them is dropped.
        logits, _ = self.model.stateless_call(point, [each.value for each in others], images, training=True)
        return logits, *self.loss.sums(masks[..., 0], logits, weights, valid)
