"""Pretrained encoder weights: downloaded once by Keras, or from a file."""

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np

from petseg import files
from petseg.errors import ConfigError


def build_with_weights(build: Callable[[str | None], keras.Model], weights: str) -> keras.Model:
    """Builds an encoder with its weights.

    Args:
      build: builds it, given Keras's `weights`: "imagenet", or None for random ones.
      weights: "none", "imagenet", or a file that `keras.Model.save_weights` wrote for the encoder without its top.

    Raises:
      ConfigError: if the weights cannot be downloaded or read, or do not fit.
    """
    if weights == "imagenet":
        try:
            home = _keras_home()
            lock = files.process_lock(home / ".petseg.lock", "downloads the encoder's weights")
            with lock, _complete_downloads(home):
                return build("imagenet")
        except Exception as error:  # Keras raises network errors of any type
            raise ConfigError(
                "--encoder_weights=imagenet: cannot be downloaded; must be a downloaded file, or none "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
    model = build(None)
    if weights != "none":
        _load_file(model, weights)
    return model


def adapt_channels(of_rgb: keras.Model, adapted: keras.Model) -> None:
    """Copies the weights of an encoder of RGB into the same encoder of other channels.

    Kernels that see the input repeat their weights for red, green and blue over the channels, times 3 / channels, so
    that activations keep their size; one channel gets the sum of the three.
    """
    for source, target in zip(of_rgb.weights, adapted.weights, strict=True):
        values = np.asarray(source)
        if tuple(target.shape) != values.shape:
            channels = target.shape[2]
            repeated = values[:, :, [channel % 3 for channel in range(channels)]] * (3 / channels)
            values = values.sum(axis=2, keepdims=True) if channels == 1 else repeated
        target.assign(values)


def check_weights_file(weights: str) -> None:
    """Raises ConfigError if `weights` is neither "imagenet" nor "none" nor a file."""
    if weights not in ("imagenet", "none") and not os.path.isfile(weights):
        raise ConfigError(f"--encoder_weights={weights}: no such file; must be imagenet, none, or a weights file")


@contextlib.contextmanager
def _complete_downloads(home: Path) -> Iterator[None]:
    """Removes partial downloads that a killed process left in Keras's folder, which Keras would take for complete.

    While it downloads, a process keeps a list of the files that were there before. A list that is still there at the
    next start is that of a killed process, and files that it lacks may be partial.
    """
    models, list_file = home / "models", home / ".petseg.downloading.json"
    if list_file.exists():
        for partial in _weights_files(models) - set(files.read_json(list_file)):
            (models / partial).unlink()
    files.write_json(list_file, sorted(_weights_files(models)))
    try:
        yield
    finally:
        list_file.unlink()


def _weights_files(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.h5")}


def _keras_home() -> Path:
    """Keras's download folder; a lock there keeps other processes from reading a partial download."""
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    if not os.access(home, os.W_OK):
        home = Path("/tmp/.keras")  # as Keras does
        home.mkdir(exist_ok=True)
    return home


def _load_file(model: keras.Model, path: str) -> None:
    check_weights_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns once per layer of a file that does not fit
            model.load_weights(path)
    except Exception as error:  # h5py and Keras raise ValueError, OSError, KeyError and more for a wrong file
        raise ConfigError(f"--encoder_weights={path}: does not fit this encoder: {_mismatch(error)}") from error


def _mismatch(error: Exception) -> str:
    """The first layer that does not fit, extracted from Keras's long message."""
    text = " ".join(str(error).split())
    layer = re.search(r"name=(\w+)", text)
    shapes = re.search(r"variable\.shape=(\(.*?\)), Received: value\.shape=(\(.*?\))", text)
    if layer and shapes:
        return f"layer {layer[1]} has shape {shapes[1]}, the file has {shapes[2]}"
    return f"layer {layer[1]}: {text[:200]}" if layer else text[:200]
