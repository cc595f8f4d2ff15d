"""Feature maps of a network at 1/2 to 1/32 of the image size, found by the shapes in its graph."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from petseg.models.functional_models import copied, readers_of
from petseg.models.layers import SpaceToDepth, Upsample

LEVELS = 5
PICTURE = "picture"
_PADDING = (keras.layers.ZeroPadding2D, keras.layers.Cropping2D)
_SCALING = (keras.layers.Rescaling, keras.layers.Normalization)
_AFTER_A_CONVOLUTION = (keras.layers.BatchNormalization, keras.layers.Activation, keras.layers.ReLU)


def levels(image_size: tuple[int, int]) -> dict[tuple[int, ...], int]:
    """Height and width of each map -> its level: 1 for half the image size to 5 for a thirty-second."""
    return {tuple(side // 2**level for side in image_size): level for level in range(1, LEVELS + 1)}


def find(network: keras.Model, image_size: tuple[int, int]) -> dict[int, keras.KerasTensor]:
    """The feature maps of a functional classification network without its top, by level.

    At each level it is the map that most operations at coarser levels read, also through padding; the last in a tie.
    At level 5 it is the output, or the input of a final 1x1 convolution that only widens it for a classifier.
    """
    level_of, readers = levels(image_size), readers_of(network)

    def coarser(tensor: keras.KerasTensor, level: int) -> int:
        count = 0
        for reader in readers.get(id(tensor), ()):
            if isinstance(reader, _PADDING):
                count += coarser(reader.output, level)
            elif not isinstance(reader, keras.layers.GlobalAveragePooling2D):
                count += any(level_of.get(each.shape[1:3], 0) > level for each in tf.nest.flatten(reader.output))
        return count

    found, most = {}, dict.fromkeys(level_of.values(), 1)
    for operation in network.operations:
        for tensor in tf.nest.flatten(operation.output):
            level = level_of.get(tensor.shape[1:3]) if len(tensor.shape) == 4 else None
            if level and not isinstance(operation, _PADDING) and (count := coarser(tensor, level)) >= most[level]:
                found[level], most[level] = tensor, count
    last = _before_head(network)
    if len(last.shape) == 4 and (level := level_of.get(last.shape[1:3])):
        found[level] = last
    return found


def completed(maps: Mapping[int, keras.KerasTensor], image: keras.KerasTensor) -> list[keras.KerasTensor]:
    """The five maps, finest first; missing ones are made of their neighbours.

    At half the size it is the image, two by two pixels as one; else the next coarser map, its pixels repeated, or the
    mean of two by two pixels of the next finer one.
    """
    maps = dict(maps)
    if 1 not in maps:
        maps[1] = SpaceToDepth(2, name=PICTURE)(image)
    finest = min((level for level in maps if level > 1), default=None)
    if finest is not None:
        for level in range(finest - 1, 1, -1):
            maps[level] = Upsample(name=f"upsampled_{level}")(maps[level + 1])
        for level in range(finest + 1, LEVELS + 1):
            if level not in maps:
                maps[level] = keras.layers.AveragePooling2D(2, name=f"pooled_{level}")(maps[level - 1])
    return [maps[level] for level in sorted(maps)]


def adjusted(network: keras.Model) -> keras.Model:
    """A network whose maps are exact fractions of the image size, without scaling layers; the same if it is one.

    Where "valid" padding would lose a border (Inception, Xception, NASNet), it becomes "same". Weights stay.
    """
    padded = {id(operation.output) for operation in network.operations if isinstance(operation, _PADDING)}
    losing = {
        operation.name
        for operation in network.operations
        if getattr(operation, "padding", None) == "valid"
        and id(operation.input) not in padded
        and operation.output.shape[1] != -(-operation.input.shape[1] // operation.strides[0])
    }
    if not losing and not any(isinstance(operation, _SCALING) for operation in network.operations):
        return network
    return copied(network, lambda layer: {"padding": "same"} if layer.name in losing else {}, skipped=_SCALING)


def _before_head(network: keras.Model) -> keras.KerasTensor:
    producers = {id(operation.output): operation for operation in network.operations}
    operation = producers[id(network.outputs[0])]
    while isinstance(operation, _AFTER_A_CONVOLUTION):
        operation = producers[id(operation.input)]
    if isinstance(operation, keras.layers.Conv2D) and operation.kernel_size == (1, 1):
        widens = operation.output.shape[-1] > operation.input.shape[-1]
        return operation.input if widens else network.outputs[0]
    return network.outputs[0]
