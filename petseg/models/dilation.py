"""Dilated encoders (Chen et al. 2017): the last feature map at 1/16 of the image size, with the same weights."""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import keras

from petseg.errors import one_line
from petseg.models.functional_models import copied, readers_of

logger = logging.getLogger(__name__)
CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
POOLING = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)


def dilated(encoder: keras.Model) -> keras.Model:
    """A copy of an encoder whose last map has the size of the map before it.

    The last stride becomes 1, and the convolutions after it get twice their dilation rate, so that each sees the pixels
    that it saw before.

    Args:
      encoder: a functional model with five maps, at 1/2 to 1/32 of the input size.

    Returns:
      the copy; the encoder itself if changing Keras's convolutions, pooling and padding is not enough for that.
    """
    *others, last = [tuple(output.shape) for output in encoder.outputs]
    wanted = [*others, (*others[-1][:3], last[3])]
    try:
        copy = copied(encoder, functools.partial(_changes, readers_of(encoder), last[1:3]))
        if [tuple(output.shape) for output in copy.outputs] != wanted:
            raise ValueError(f"changing its layers does not give a map of {wanted[-1][1:3]} pixels")
    except Exception as error:  # Keras raises errors of any type for layers that do not fit together or have no config
        logger.info("the encoder's last map stays at 1/32 of the size: %s", one_line(error)[:200])
        return encoder
    return copy


def _changes(readers: Mapping[int, list[Any]], coarse: tuple[int, int], layer: keras.Layer) -> dict[str, Any]:
    """The config changes that dilate a layer whose map has the size of the last stage."""
    if _is_of_last_stage(layer, coarse):
        changes: dict[str, Any] = {"strides": 1, "padding": "same"}  # the padding of layers before it is left out
        if layer.strides not in (1, (1, 1)):
            return changes
        if isinstance(layer, POOLING):
            raise ValueError(f"{layer.name} cannot be dilated")
        return {**changes, "dilation_rate": [2 * rate for rate in layer.dilation_rate]}
    if isinstance(layer, keras.layers.ZeroPadding2D):
        of_output = readers.get(id(layer.output), [])
        if of_output and all(_is_of_last_stage(reader, coarse) for reader in of_output):
            return {"padding": 0}
    return {}


def _is_of_last_stage(layer: Any, coarse: tuple[int, int]) -> bool:
    """Whether it is a convolution or pooling with an output of the last stage's size; 1x1 ones without stride aside."""
    if not isinstance(layer, CONVOLUTIONS + POOLING) or tuple(layer.output.shape[1:3]) != coarse:
        return False
    size = layer.pool_size if isinstance(layer, POOLING) else layer.kernel_size
    return set(size) != {1} or set(layer.strides) != {1}
