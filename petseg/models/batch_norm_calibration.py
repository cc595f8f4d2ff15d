"""Calibration of a random encoder's batch norms with training images."""

import math

import keras
import tensorflow as tf

from petseg.models.feature_maps import LEVELS

FEW_VALUES, ENOUGH_VALUES = 16, 64  # of a channel in the last map, for its statistics


def calibrate_batch_norm(encoder: keras.Model, images: tf.Tensor) -> None:
    """Sets the moving statistics of all batch norms to those of some images.

    A data-dependent initialisation (Krähenbühl et al. 2016) that random encoders need: their batch norms run in
    inference mode, and with initial statistics, mean 0 and variance 1, the signal vanishes within a few blocks.

    Few small images are repeated, shifted and in other colours: one or two values of a channel, as in the last map of
    one or two images of 32 pixels, hardly vary, so that a deep encoder would amplify other images up to infinity.

    Args:
      images: float32 [B, H, W, C], scaled as in training.
    """
    values = len(images) * math.prod(side // 2**LEVELS for side in images.shape[1:3])
    if values < FEW_VALUES:
        images = tf.repeat(images, math.ceil(ENOUGH_VALUES / values), axis=0)
        colours = tf.random.stateless_uniform([len(images), 1, 1, images.shape[3]], [0, 0], 0.5, 1.5)
        images = colours * tf.stack([tf.roll(image, [5 * i, 7 * i], [0, 1]) for i, image in enumerate(images)])
    norms = [layer for layer in encoder._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    states = [(norm.trainable, norm.momentum) for norm in norms]
    for norm in norms:
        norm.trainable, norm.momentum = True, 0.0  # a frozen batch norm would ignore training=True
    encoder(images, training=True)
    for norm, (trainable, momentum) in zip(norms, states, strict=True):
        norm.trainable, norm.momentum = trainable, momentum
