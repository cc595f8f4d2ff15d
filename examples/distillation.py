"""Distillation (Hinton, Vinyals and Dean 2015): the network also learns the class probabilities of a trained run.

    TEACHER=runs/best python train.py --preset=fast --step=examples/distillation.py:Distillation

The teacher has the same classes and the same --image_size.
"""

import os

import tensorflow as tf

import petseg
from petseg.errors import ConfigError
from petseg.training.trainer import Trainer

WEIGHT, TEMPERATURE = 1.0, 2.0


class Distillation(Trainer):
    """Adds the cross-entropy between the teacher's and the student's softened probabilities."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        if "TEACHER" not in os.environ:
            raise ConfigError("TEACHER: must be set to the work directory of a trained run")
        self._teacher = petseg.load(os.environ["TEACHER"]).model

    def forward(self, images, masks, weights, valid):
        logits, loss, denominator = super().forward(images, masks, weights, valid)
        targets = tf.nn.softmax(tf.stop_gradient(self._teacher(images, training=False)) / TEMPERATURE)
        losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits / TEMPERATURE) * TEMPERATURE**2
        return logits, loss + WEIGHT * tf.reduce_sum(losses * tf.cast(valid, tf.float32)), denominator
