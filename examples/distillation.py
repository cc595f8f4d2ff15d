"""Distillation (Hinton, Vinyals and Dean 2015): the network also learns the class probabilities of trained runs.

    TEACHER=runs/a,runs/b python train.py --preset=best --step=examples/distillation.py:Distillation

The target is the mean of the teachers' probabilities for the image and its mirror image, so that one pass learns what
an ensemble with --flip_tta predicts. `TEACHER=pets` is the packaged model. Teachers have the same classes and the same
--image_size.
"""

import os

import tensorflow as tf

import petseg
from petseg.errors import ConfigError
from petseg.training.trainer import Trainer

WEIGHT = 2.0  # of the teachers' probabilities, beside the loss of the labels


class Distillation(Trainer):
    """Adds the cross-entropy between the teachers' and the student's class probabilities."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        if "TEACHER" not in os.environ:
            raise ConfigError("TEACHER: must be set to the work directories of trained runs, separated by commas")
        self._teacher = petseg.load(os.environ["TEACHER"].split(",")).model

    def _targets(self, images):
        mirrored = tf.nn.softmax(self._teacher(images[:, :, ::-1], training=False))[:, :, ::-1]
        return (tf.nn.softmax(self._teacher(images, training=False)) + mirrored) / 2

    def forward(self, images, masks, weights, valid):
        logits, loss, denominator = super().forward(images, masks, weights, valid)
        losses = tf.nn.softmax_cross_entropy_with_logits(tf.stop_gradient(self._targets(images)), logits)
        return logits, loss + WEIGHT * tf.reduce_sum(losses * tf.cast(valid, tf.float32)), denominator
