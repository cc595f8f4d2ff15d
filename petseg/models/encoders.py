"""The encoder: MobileNetV2 with five outputs, its pretrained weights, and what a random one needs."""

import os
import re
import warnings

import keras
import tensorflow as tf

from petseg.errors import ConfigError

# Outputs of MobileNetV2 at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input's size.
SKIP_LAYERS = ("block_1_expand_relu", "block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu")
BOTTLENECK_LAYER = "block_16_project"


def build_encoder(*, image_size: int, alpha: float, weights: str = "none") -> keras.Model:
    """MobileNetV2 (Sandler et al. 2018) as a model with five outputs, finest first.

    Args:
      image_size: side of the input in pixels, a multiple of 32.
      alpha: width factor.
      weights: "none" for random ones, "imagenet" for those that Keras downloads once, or a file of MobileNetV2 without
        its top, as `keras.Model.save_weights` writes it.

    Raises:
      ConfigError: if the weights cannot be had or do not fit.
    """
    shape = [image_size, image_size, 3]
    if weights == "imagenet":
        try:
            backbone = keras.applications.MobileNetV2(input_shape=shape, alpha=alpha, include_top=False)
        except Exception as error:  # Keras lets every kind of network error through
            raise ConfigError(
                "--encoder_weights=imagenet: cannot be downloaded; must be a file that was, or none "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
    else:
        backbone = keras.applications.MobileNetV2(input_shape=shape, alpha=alpha, include_top=False, weights=None)
    if weights not in ("imagenet", "none"):
        _load_file(backbone, weights)
    outputs = [backbone.get_layer(name).output for name in (*SKIP_LAYERS, BOTTLENECK_LAYER)]
    return keras.Model(backbone.inputs[0], outputs, name="encoder")


def check_encoder_weights(weights: str) -> None:
    """Raises ConfigError if `weights` is neither "imagenet" nor "none" nor a file."""
    if weights not in ("imagenet", "none") and not os.path.isfile(weights):
        raise ConfigError(f"--encoder_weights={weights}: no such file; must be imagenet, none, or a weights file")


def _load_file(model: keras.Model, path: str) -> None:
    check_encoder_weights(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns once per layer of a file that does not fit
            model.load_weights(path)
    except Exception as error:  # h5py and Keras raise ValueError, OSError, KeyError and more for a wrong file
        raise ConfigError(f"--encoder_weights={path}: does not fit this encoder: {_mismatch(error)}") from error


def _mismatch(error: Exception) -> str:
    """The first layer that a weights file does not fit, out of Keras's long message."""
    text = " ".join(str(error).split())
    layer = re.search(r"name=(\w+)", text)
    shapes = re.search(r"variable\.shape=(\(.*?\)), Received: value\.shape=(\(.*?\))", text)
    if layer and shapes:
        return f"layer {layer[1]} has shape {shapes[1]}, the file has {shapes[2]}"
    return f"layer {layer[1]}: {text[:200]}" if layer else text[:200]


def calibrate_batch_norm(encoder: keras.Model, images: tf.Tensor) -> None:
    """Sets the moving statistics of every batch norm to those of some images.

    A randomly initialised encoder needs this. Its batch norms run in inference mode; with the initial statistics, mean
    0 and variance 1, they normalise nothing, and the signal dies out within a few blocks. (Data-dependent
    initialisation, as in Krähenbühl et al. 2016.)

    Args:
      encoder: the model to change.
      images: float32 [B, S, S, 3], scaled as in training.
    """
    norms = [layer for layer in encoder._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    momentum = [layer.momentum for layer in norms]
    trainable = encoder.trainable
    encoder.trainable = True  # a frozen batch norm would ignore training=True
    for layer in norms:
        layer.momentum = 0.0
    encoder(images, training=True)
    for layer, value in zip(norms, momentum, strict=True):
        layer.momentum = value
    encoder.trainable = trainable
