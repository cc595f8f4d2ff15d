"""Pretrained weights of an encoder: downloaded once by Keras, or out of a file."""

import contextlib
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import keras

from petseg import files
from petseg.errors import ConfigError


def build_with_weights(build: Callable[[str | None], keras.Model], weights: str) -> keras.Model:
    """An encoder with its weights.

    Args:
      build: a function that builds it, with the weights that Keras calls "imagenet", or with random ones for None.
      weights: "none" for random ones, "imagenet" for those that Keras downloads once, or a file of the encoder without
        its top, as `keras.Model.save_weights` writes it.

    Raises:
      ConfigError: if the weights cannot be had or do not fit.
    """
    if weights == "imagenet":
        try:
            with files.process_lock(_folder_of_keras() / ".petseg.lock", "fetches the encoder's weights"):
                return build("imagenet")
        except Exception as error:  # Keras lets every kind of network error through
            raise ConfigError(
                "--encoder_weights=imagenet: cannot be downloaded; must be a file that has been, or none "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
    model = build(None)
    if weights != "none":
        _load_file(model, weights)
    return model


def check(weights: str) -> None:
    """Raises ConfigError if `weights` is neither "imagenet" nor "none" nor a file."""
    if weights not in ("imagenet", "none") and not os.path.isfile(weights):
        raise ConfigError(f"--encoder_weights={weights}: no such file; must be imagenet, none, or a weights file")


def _folder_of_keras() -> Path:
    """Where Keras puts what it downloads. It writes under the final name: who comes second would read half a file."""
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    if not os.access(home, os.W_OK):
        home = Path("/tmp/.keras")  # as Keras does
        home.mkdir(exist_ok=True)
    return home


def _load_file(model: keras.Model, path: str) -> None:
    check(path)
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
