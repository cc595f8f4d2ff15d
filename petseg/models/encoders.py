"""Encoders by name: feature maps, input scaling, partial freezing."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from petseg import custom_code
from petseg.config.model_config import HUB, IMAGENET_ALPHAS, KERAS_ENCODERS
from petseg.errors import ConfigError, one_line
from petseg.models import feature_maps, keras_hub_encoders, pretrained_weights
from petseg.models.feature_maps import LEVELS

STAGES = tuple(f"stage_{level}" for level in range(1, LEVELS + 1))

# Input scaling: factor and offset of pixels in [0, 255].
SYMMETRIC = (1 / 127.5, -1.0)
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1], by channel
STANDARDIZED = (
    [1 / 255 / deviation for deviation in _DEVIATION],
    [-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)],
)
CAFFE = ([1.0] * 3, [-123.68, -116.779, -103.939])
SCALINGS: dict[str, Any] = {"unit": (1 / 255.0, 0.0), "symmetric": SYMMETRIC}
# What pretrained weights expect, by name; SYMMETRIC for the rest.
_BGR = re.compile(r"ResNet\d+|VGG\d+")
_PRETRAINED_SCALINGS = {
    _BGR: CAFFE,
    re.compile(r"(DenseNet|EfficientNetB|EfficientNetV2B|ConvNeXt)\w+"): STANDARDIZED,
    re.compile(r"EfficientNetV2[SML]"): (1 / 128, -1.0),
}
# Feature maps of earlier versions where `feature_maps.find` chooses others, so that runs resume.
_EARLIER_MAPS = {
    "mobilenet_v2": {5: "block_16_project"},
    "convnext_tiny": {
        level: f"convnext_tiny_stage_{level - 2}_block_{last}_identity" for level, last in ((2, 2), (3, 2), (4, 8))
    },
}


def build_encoder(
    name: str, *, image_size: tuple[int, int], alpha: float = 1.0, weights: str = "none", channels: int = 3
) -> keras.Model:
    """Builds an encoder: a model with five feature maps, at 1/2 to 1/32 of the input size, finest first.

    Args:
      name: one of `petseg.config.model_config`'s ENCODERS and KERAS_ENCODERS, "hub:" and a preset or class of
        keras-hub, or user code: a function of the image size and the number of channels to a functional Keras
        model with the five maps as outputs, with initial weights of its own.
      image_size: height and width of the input in pixels, multiples of 32.
      alpha: width factor of the channels; 1 for encoders of one width.
      weights: "none", "imagenet" for the pretrained weights of Keras or keras-hub, or a file; see `pretrained_weights`.
      channels: number of channels of the input. Pretrained weights are of RGB; for other channels, the first
        convolution is adapted by `pretrained_weights.assign`.

    Raises:
      ConfigError: if the encoder cannot be built at this size, the weights cannot be loaded, a feature map has another
        size, or the user's function fails.
    """
    if custom_code.is_reference(name):
        encoder = _own(name, image_size, channels)
    elif name.startswith(HUB):
        encoder = keras_hub_encoders.build(name, image_size, channels, pretrained=weights == "imagenet")
    else:
        encoder = _of_keras(name, image_size, alpha, weights == "imagenet", channels)
    wanted = list(feature_maps.levels(image_size))
    found = [tuple(each.shape[1:3]) for each in encoder.outputs]
    if found != wanted:
        raise ConfigError(f"--encoder={name}: its maps of {image_size} pixels are {found}; must be {wanted}")
    if weights not in ("none", "imagenet"):
        pretrained_weights.load_file(encoder, weights, bgr=reads_bgr(name))
    return encoder


def keras_name(encoder: str) -> str:
    """The name in `keras.applications` of an encoder, also of those with names of earlier versions."""
    names = {name.lower(): name for name in KERAS_ENCODERS}
    return names.get(encoder.replace("_", "").lower(), encoder)


def reads_bgr(encoder: str) -> bool:
    """Whether its network reads blue, green and red, in this order."""
    return _BGR.fullmatch(keras_name(encoder)) is not None


def _own(reference: str, image_size: tuple[int, int], channels: int) -> keras.Model:
    made = custom_code.call("encoder", reference, image_size, channels)
    if not isinstance(made, keras.Model) or not hasattr(made, "outputs"):
        raise ConfigError(
            f"--encoder={reference}: returned {type(made).__name__}; must be a functional Keras model with {LEVELS} "
            "feature maps as outputs, at 1/2 to 1/32 of the image size"
        )
    return keras.Model(made.inputs[0], made.outputs, name="encoder")


def _of_keras(name: str, image_size: tuple[int, int], alpha: float, pretrained: bool, channels: int) -> keras.Model:
    """A model of `keras.applications`, or `tiny`, with feature maps as outputs."""
    kind = keras_name(name)
    try:
        if not pretrained:
            network = _network(kind, (*image_size, channels), alpha)
        elif channels == 3 and not kind.startswith("NASNet"):  # whose weights Keras loads for one size only
            network = pretrained_weights.download(lambda: _network(kind, (*image_size, 3), alpha, "imagenet"))
        else:
            of_rgb = pretrained_weights.download(lambda: _network(kind, None, alpha, "imagenet"))
            network = _network(kind, (*image_size, channels), alpha)
            pretrained_weights.assign(network, of_rgb.get_weights(), bgr=reads_bgr(name))
    except ValueError as error:
        raise ConfigError(f"--encoder={name}: {one_line(error)}") from error
    network = feature_maps.adjusted(network)
    maps = feature_maps.find(network, image_size)
    for level, layer in _EARLIER_MAPS.get(name, {}).items():
        maps[level] = network.get_layer(layer).output
    images = network.inputs[0]
    return keras.Model(images, feature_maps.completed(maps, images), name="encoder")


def _network(kind: str, shape: tuple[int, ...] | None, alpha: float, weights: str | None = None) -> keras.Model:
    """A classification network without its top; shape None for the size that Keras prefers."""
    if kind == "tiny":
        return _tiny(shape, alpha)
    build = getattr(keras.applications, kind)
    options: dict[str, Any] = {"alpha": alpha} if kind.lower() in IMAGENET_ALPHAS else {}
    if "include_preprocessing" in inspect.signature(build).parameters:
        options["include_preprocessing"] = False
    if reads_bgr(kind) and shape:
        options["input_tensor"] = keras.ops.flip(keras.Input(shape), axis=-1)
    return build(input_shape=shape and list(shape), include_top=False, weights=weights, **options)


def _tiny(shape: Any, alpha: float) -> keras.Model:
    """A strided convolution for each stage: cheap to build, compile and run; for tests."""
    images = x = keras.Input(shape)
    for stage, filters in zip(STAGES, (8, 16, 24, 32, 48), strict=True):
        x = keras.layers.Conv2D(max(1, round(filters * alpha)), 3, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(name=f"{stage}_norm")(x)
        x = keras.layers.ReLU(name=stage)(x)
    return keras.Model(images, x)


def scaling(encoder: str, input_scaling: str, channels: int = 3) -> tuple[Any, Any]:
    """Factor and offset of pixels in [0, 255], as numbers or lists by channel.

    Statistics of red, green and blue are repeated over other channels, as the weights of the first convolution are;
    one channel has their mean.

    Args:
      input_scaling: "unit" for [0, 1], "symmetric" for [-1, 1], "encoder" as its pretrained weights expect.
    """
    if input_scaling != "encoder":
        factor, offset = SCALINGS[input_scaling]
    elif encoder.startswith(HUB):
        factor, offset = keras_hub_encoders.scaling(encoder) or STANDARDIZED
    else:
        found = [pair for names, pair in _PRETRAINED_SCALINGS.items() if names.fullmatch(keras_name(encoder))]
        factor, offset = found[0] if found else SYMMETRIC
    return _by_channel(factor, channels), _by_channel(offset, channels)


def _by_channel(values: Any, channels: int) -> Any:
    if not isinstance(values, list) or channels == 3:
        return values
    return [sum(values) / 3] if channels == 1 else [values[channel % 3] for channel in range(channels)]


def freeze_before(encoder: keras.Model, first_trained: str) -> list[bool]:
    """Freezes the first layers of a trainable encoder.

    Args:
      first_trained: "all"; "stage_2" to "stage_5" for layers after the previous stage's output; or a layer's name for
        all layers that it does not depend on.

    Returns:
      for each of the five feature maps, whether it depends on trained weights.

    Raises:
      ConfigError: if there is no such layer.
    """
    if first_trained in ("all", STAGES[0]):
        before: list[Any] = []
    elif first_trained in STAGES:
        before = [encoder.outputs[STAGES.index(first_trained) - 1]]
    else:
        try:
            before = tf.nest.flatten(encoder.get_layer(first_trained).input)
        except ValueError as error:
            raise ConfigError(
                f"--train_encoder_from={first_trained}: must be all, none, {', '.join(STAGES)}, or a layer of the "
                "encoder"
            ) from error
    frozen = {id(layer) for layer in _needed_by(encoder, before)}
    for layer in encoder.layers:
        layer.trainable = id(layer) not in frozen
    return [any(layer.trainable_weights for layer in _needed_by(encoder, [output])) for output in encoder.outputs]


def _needed_by(encoder: keras.Model, tensors: Sequence[keras.KerasTensor]) -> list[keras.Layer]:
    """The layers that some tensors of an encoder depend on."""
    return keras.Model(encoder.inputs, list(tensors)).layers if tensors else []
