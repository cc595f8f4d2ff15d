"""Custom networks: a function in a file or a module that --network names."""

import math
from collections.abc import Mapping
from typing import Any

import keras

from petseg import custom_code
from petseg.errors import ConfigError
from petseg.models import layers


def build(
    network: str, *, image_size: tuple[int, int], num_classes: int, sync_batch_norm: bool, channels: int = 3
) -> keras.Model:
    """Builds and checks a custom network: float32 images in [0, 255] -> float32 logits.

    The function is called as `function(image_size, num_classes, channels)`. It returns a functional Keras model, or a
    pair of that and a dictionary: learning-rate factor -> layers.

    Args:
      sync_batch_norm: whether batch norms, nested ones too, use statistics of the global batch.

    Raises:
      ConfigError: if there is no such function, it fails, or its result is not such a network.
    """
    made = custom_code.call("network", network, image_size, num_classes, channels)
    model, groups = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    wanted = ((None, *image_size, channels), (None, *image_size, num_classes), "float32")
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
    layers.track_weights(model)
    return model


def _set_learning_rate_factors(network: str, model: keras.Model, groups: Any) -> None:
    own = {id(layer) for layer in model._flatten_layers()}
    if not isinstance(groups, Mapping):
        raise ConfigError(f"--network={network}: returned {groups!r} beside its model; must be a dictionary")
    for factor, members in groups.items():
        if not isinstance(factor, int | float) or not math.isfinite(factor) or factor < 0:
            raise ConfigError(f"--network={network}: learning-rate factor {factor!r}: must be a number of at least 0")
        for layer in members:
            if id(layer) not in own:
                raise ConfigError(f"--network={network}: {layer!r} of factor {factor:g}: must be a layer of the model")
            layer.learning_rate_factor = float(factor)  # read by `training.optimizers`
