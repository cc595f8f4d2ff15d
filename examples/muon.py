"""Muon (Jordan et al. 2024): momentum made orthogonal for kernels as matrices; AdamW for all other weights.

    python train.py --optimizer=examples/muon.py:muon --learning_rate=1e-3 --weight_decay=0.01

`--optimizer=muon` is petseg's own; this file shows how to write one. Keras calls `update_step` for each weight, with
the gradient that petseg has reduced over the replicas, unscaled and clipped.
"""

import keras
import tensorflow as tf

MOMENTUM, ITERATIONS = 0.95, 5
RMS = 0.2  # of an update, at which AdamW's learning rates fit (Liu et al. 2025)


class Muon(keras.optimizers.Adam):
    """The slots are those of Adam, of which a kernel uses the first moment."""

    def update_step(self, gradient, variable, learning_rate):
        if len(variable.shape) < 2 or variable.shape[-1] == 1:  # vectors and depthwise kernels
            super().update_step(gradient, variable, learning_rate)
            return
        slot = self._momentums[self._get_variable_index(variable)]
        momentum = MOMENTUM * slot + gradient
        self.assign(slot, momentum)
        update = orthogonal(tf.reshape(gradient + MOMENTUM * momentum, [-1, variable.shape[-1]]))
        scale = RMS * max(update.shape) ** 0.5 * tf.cast(learning_rate, gradient.dtype)
        self.assign_sub(variable, scale * tf.reshape(update, variable.shape))


def orthogonal(matrix: tf.Tensor) -> tf.Tensor:
    """The matrix with singular values near 1, by a Newton-Schulz iteration."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = tf.transpose(matrix) if is_tall else matrix
    x /= tf.norm(x) + 1e-7
    for _ in range(ITERATIONS):
        square = x @ tf.transpose(x)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return tf.transpose(x) if is_tall else x


def muon(flags) -> keras.optimizers.Optimizer:
    """A new optimizer for each learning rate; petseg assigns the rate before each step."""
    return Muon(weight_decay=flags.weight_decay or None)
