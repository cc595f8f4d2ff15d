"""Mean teacher (Tarvainen and Valpola 2017): pixels without a label are trained to agree with the averaged weights.

    python train.py --step=examples/mean_teacher.py:MeanTeacher --ema_decay=0.99

Photographs without a label take part as examples whose mask is ignored (255) everywhere.
"""

import tensorflow as tf

from petseg.errors import ConfigError
from petseg.training.trainer import Trainer

WEIGHT, RAMP_UP = 1.0, 1000  # of the consistency loss; steps until it has its full weight


class MeanTeacher(Trainer):
    """Adds the squared difference of the student's and the teacher's probabilities at ignored pixels."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        if self.average is None:
            raise ConfigError("--ema_decay: must be above 0, because the averaged weights are the teacher")

    def forward(self, images, masks, weights, valid):
        logits, loss, denominator = super().forward(images, masks, weights, valid)
        teacher = tf.stop_gradient(tf.nn.softmax(self.average.forward(self.model, images)))
        difference = tf.reduce_sum((tf.nn.softmax(logits) - teacher) ** 2, axis=-1)
        unlabelled = tf.cast(~valid, tf.float32)
        ramp = tf.minimum(tf.cast(self.step, tf.float32) / RAMP_UP, 1.0)
        return (
            logits,
            loss + WEIGHT * ramp * tf.reduce_sum(difference * unlabelled),
            denominator + tf.reduce_sum(unlabelled),
        )
