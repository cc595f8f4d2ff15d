"""Encoders by name, with five outputs; their pretrained weights, and what a random one needs."""

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import tensorflow as tf

from petseg import files
from petseg.errors import ConfigError


def build_encoder(name: str, *, image_size: tuple[int, int], alpha: float = 1.0, weights: str = "none") -> keras.Model:
    """An encoder by its name, as a model with five outputs, at 1/2 to 1/32 of the input's size, finest first.

    Args:
      name: one of `petseg.config.ENCODERS`.
      image_size: height and width of the input in pixels, multiples of 32.
      alpha: factor of the width, the number of channels.
      weights: "none" for random ones, "imagenet" for those that Keras downloads once, or a file of the encoder without
        its top, as `keras.Model.save_weights` writes it.

    Raises:
      ConfigError: if the weights cannot be had or do not fit.
    """
    kind, shape = _ENCODERS[name], [*image_size, 3]
    if weights == "imagenet":
        try:
            with files.one_process_at_a_time(_folder_of_keras() / ".petseg.lock", "fetches the encoder's weights"):
                backbone = kind.build(shape, alpha, "imagenet")
        except Exception as error:  # Keras lets every kind of network error through
            raise ConfigError(
                "--encoder_weights=imagenet: cannot be downloaded; must be a file that has been, or none "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
    else:
        backbone = kind.build(shape, alpha, None)
    if weights not in ("imagenet", "none"):
        _load_file(backbone, weights)
    outputs = [backbone.get_layer(layer).output for layer in kind.outputs]
    return keras.Model(backbone.inputs[0], outputs, name="encoder")


def _mobilenet_v2(shape: list[int], alpha: float, weights: str | None) -> keras.Model:
    """MobileNetV2 (Sandler et al. 2018)."""
    return keras.applications.MobileNetV2(input_shape=shape, alpha=alpha, include_top=False, weights=weights)


def _tiny(shape: list[int], alpha: float, weights: str | None) -> keras.Model:
    """A strided convolution for each stage: next to nothing to build, compile and run, and little to learn with."""
    images = x = keras.Input(shape)
    for stage, filters in enumerate((8, 16, 24, 32, 48), start=1):
        x = keras.layers.Conv2D(max(1, round(filters * alpha)), 3, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(name=f"stage_{stage}_norm")(x)
        x = keras.layers.ReLU(name=f"stage_{stage}")(x)
    return keras.Model(images, x)


class _Encoder(NamedTuple):
    """How an encoder is built, and its layers whose outputs have 1/2, 1/4, 1/8, 1/16 and 1/32 of the input's size."""

    build: Callable[[list[int], float, str | None], keras.Model]
    outputs: Sequence[str]


_ENCODERS = {
    "mobilenet_v2": _Encoder(
        _mobilenet_v2,
        (
            "block_1_expand_relu",
            "block_3_expand_relu",
            "block_6_expand_relu",
            "block_13_expand_relu",
            "block_16_project",
        ),
    ),
    "tiny": _Encoder(_tiny, ("stage_1", "stage_2", "stage_3", "stage_4", "stage_5")),
}


def _folder_of_keras() -> Path:
    """Where Keras puts what it downloads. It writes under the final name: who comes second would read half a file."""
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    if not os.access(home, os.W_OK):
        home = Path("/tmp/.keras")  # as Keras does
        home.mkdir(exist_ok=True)
    return home


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
      encoder: the encoder to change, as `build_encoder` returns it.
      images: float32 [B, H, W, 3], scaled as in training.
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
