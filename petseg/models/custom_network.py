"""Custom networks: a function in a file or a module that --network names."""

import hashlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from petseg.errors import ConfigError, one_line

if TYPE_CHECKING:
    import keras

CHANNELS = 3


def source_file(network: str) -> Path:
    """The source file of a custom network; finding a module in a package imports the package.

    Raises:
      ConfigError: if there is no such file or module.
    """
    place, _, _ = network.rpartition(":")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ConfigError(f"--network={network}: there is no file {place}")
        return Path(place)
    try:
        spec = importlib.util.find_spec(place)
    except ImportError:
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ConfigError(f"--network={network}: there is no module {place}")
    return Path(spec.origin)


def fingerprint(network: str) -> str:
    """SHA-256 of a custom network's source file; empty for built-in networks.

    Raises:
      ConfigError: if there is no such file or module.
    """
    return hashlib.sha256(source_file(network).read_bytes()).hexdigest() if network else ""


def build(network: str, *, image_size: tuple[int, int], num_classes: int, sync_batch_norm: bool) -> "keras.Model":
    """Builds and checks a custom network: float32 images in [0, 255] -> float32 logits.

    The function is called as `function(image_size, num_classes, channels)`. It returns a functional Keras model, or a
    pair of that and a dictionary: learning-rate factor -> layers.

    Args:
      network: `FILE.py:function` or `package.module:function`.
      image_size: height and width in pixels.
      num_classes: number of classes.
      sync_batch_norm: whether batch norms, nested ones too, use statistics of the global batch.

    Raises:
      ConfigError: if there is no such function, it fails, or its result is not such a network.
    """
    import keras  # imported here, because a fingerprint does not need it

    function = _function(network)
    try:
        made = function(image_size, num_classes, CHANNELS)
    except Exception as error:  # code of the user may raise anything
        raise ConfigError(f"--network={network}: failed: {one_line(error)}") from error
    model, groups = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    wanted = ((None, *image_size, CHANNELS), (None, *image_size, num_classes), "float32")
    try:
        found = (model.input_shape, model.output_shape, model.output.dtype)
    except AttributeError as error:
        raise ConfigError(
            f"--network={network}: returned {type(made).__name__}; must be a functional Keras model, or a pair of "
            "that and a dictionary"
        ) from error
    if found != wanted:
        raise ConfigError(
            f"--network={network}: its input, output and the output's dtype are {found}; must be {wanted}"
        )
    if not model.trainable_variables:
        raise ConfigError(f"--network={network}: its model has no weights to train; must have some")
    _set_learning_rate_factors(network, model, groups)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = sync_batch_norm
    return model


def _function(network: str) -> Callable[..., Any]:
    _, _, name = network.rpartition(":")
    try:
        function = getattr(_module(network), name, None)
    except Exception as error:  # code of the user may raise anything
        raise ConfigError(f"--network={network}: cannot be imported: {one_line(error)}") from error
    if not callable(function):
        raise ConfigError(f"--network={network}: there is no function {name} in {source_file(network)}")
    return function


def _module(network: str) -> ModuleType:
    file, place = source_file(network), network.rpartition(":")[0]
    if not place.endswith(".py"):
        return importlib.import_module(place)
    # In sys.modules, so that Keras finds its classes when it copies a model for export.
    name = f"petseg_network_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--network={network}: {file} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _set_learning_rate_factors(network: str, model: "keras.Model", groups: Any) -> None:
    own = {id(layer) for layer in model._flatten_layers()}
    if not isinstance(groups, Mapping):
        raise ConfigError(f"--network={network}: returned {groups!r} beside its model; must be a dictionary")
    for factor, layers in groups.items():
        if not isinstance(factor, int | float) or not math.isfinite(factor) or factor < 0:
            raise ConfigError(f"--network={network}: learning-rate factor {factor!r}: must be a number of at least 0")
        for layer in layers:
            if id(layer) not in own:
                raise ConfigError(f"--network={network}: {layer!r} of factor {factor:g}: must be a layer of the model")
            layer.learning_rate_factor = float(factor)  # read by `training.optimizers`
