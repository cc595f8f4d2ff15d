"""Pretrained encoder weights: downloaded once by Keras, or from a file; other channels."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import keras
import numpy as np

from petseg import files
from petseg.errors import ConfigError, one_line
from petseg.models import weights_files

logger = logging.getLogger(__name__)
Model = TypeVar("Model")


def download(build: Callable[[], Model]) -> Model:
    """The model that `build` returns, for which Keras may download weights; one process at a time.

    Raises ConfigError if they cannot be downloaded.
    """
    try:
        home = _keras_home()
        with files.process_lock(home / ".petseg.lock", "downloads the encoder's weights"), _complete_downloads(home):
            return build()
    except Exception as error:  # Keras raises network errors of any type
        raise ConfigError(
            "--encoder_weights=imagenet: cannot be downloaded; must be a downloaded file, or none "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


def load_file(encoder: keras.Model, path: str, *, bgr: bool = False) -> None:
    """Loads the weights of an encoder from a file of it or of a network that contains it.

    The file: `.weights.h5`, `.h5`, `.keras` or `.safetensors`, with or without a classifier. Weights without a
    counterpart stay random, and are logged. Raises ConfigError if it cannot be read, or less than half of the weights
    have a counterpart of their shape.
    """
    check_weights_file(path)
    try:
        found = weights_files.matches(encoder, path)
    except Exception as error:  # h5py, zipfile and safetensors raise errors of many types for a damaged file
        raise ConfigError(f"--encoder_weights={path}: does not fit this encoder: {one_line(error)}") from error
    other, missing = assign(encoder, found, bgr=bgr)
    left = [*other, *missing]
    if 2 * len(left) > len(encoder.weights) or len(left) == len(encoder.weights):
        first = other[0] if other else f"it has no {missing[0]}"
        raise ConfigError(f"--encoder_weights={path}: does not fit this encoder: {first}")
    if left:
        text = "--encoder_weights=%s: %d of %d weights do not fit and stay random: %s"
        logger.warning(text, path, len(left), len(encoder.weights), "; ".join(left[:3]))


def assign(
    encoder: keras.Model, values: Sequence[np.ndarray | None], *, bgr: bool = False
) -> tuple[list[str], list[str]]:
    """Assigns values to an encoder's weights, adapted to its channels; those that do not fit stay as they are.

    Kernels that see images of other channels repeat their weights for red, green and blue over the channels, times
    3 / channels, so that activations keep their size; one channel gets the sum of the three.

    Args:
      values: the values of each weight, or None.
      bgr: whether kernels see the channels in reverse order.

    Returns:
      descriptions of the weights whose values have another shape, and the paths of those without values.
    """
    other, missing = [], []
    for variable, array in zip(encoder.weights, values, strict=True):
        if array is None:
            missing.append(variable.path)
            continue
        if _differ_in_channels(array.shape, variable.shape, encoder.input_shape[-1]):
            array = _of_channels(array, encoder.input_shape[-1], bgr)
        if array.shape == tuple(variable.shape):
            variable.assign(array)
        else:
            shapes = f"has shape {tuple(variable.shape)}, the file has {array.shape}"
            other.append(f"layer {variable.path.rpartition('/')[0]} {shapes}")
    return other, missing


def _differ_in_channels(found: tuple[int, ...], wanted: tuple[int, ...], channels: int) -> bool:
    is_kernel = len(found) == len(wanted) == 4 and wanted[2] == channels != found[2]
    return is_kernel and (found[:2], found[3]) == (tuple(wanted[:2]), wanted[3])


def _of_channels(kernel: np.ndarray, channels: int, bgr: bool) -> np.ndarray:
    kernel, count = kernel[:, :, ::-1] if bgr else kernel, kernel.shape[2]
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = kernel[:, :, [channel % count for channel in range(channels)]] * (count / channels)
    return repeated[:, :, ::-1] if bgr else repeated


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
