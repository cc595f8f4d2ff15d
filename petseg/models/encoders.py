"""Encoders by name: feature maps, input scaling, partial freezing, calibration of random ones."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from petseg import custom_code
from petseg.config.model_config import ENCODERS
from petseg.errors import ConfigError
from petseg.models import pretrained_weights
from petseg.models.layers import SpaceToDepth

LEVELS = 5
STAGES = tuple(f"stage_{level}" for level in range(1, LEVELS + 1))

# Input scaling: factor and offset of pixels in [0, 255], as pretrained weights expect.
SYMMETRIC = (1 / 127.5, -1.0)
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1], by channel
STANDARDIZED = (
    [1 / 255 / deviation for deviation in _DEVIATION],
    [-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)],
)
SCALINGS: dict[str, Any] = {"unit": (1 / 255.0, 0.0), "symmetric": SYMMETRIC}

PICTURE, OUTPUT, INTO = "picture", "output", "into "


class _Encoder(NamedTuple):
    """Constructor, feature maps and input scaling of an encoder.

    Attributes:
      build: (input shape, width factor, Keras's `weights`) -> model.
      taps: sources of the feature maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input size: a layer's name for its
        output; "into " and a layer's name for its input (activations have no stable names); "output" for the encoder's;
        "picture" for the input image after space to depth.
      scaling: factor and offset of pixels in [0, 255], as the pretrained weights expect.
    """

    build: Callable[[list[int], float, str | None], keras.Model]
    taps: Sequence[str]
    scaling: tuple[Any, Any] = SYMMETRIC


def _of_keras(name: str, *, has_alpha: bool = False, **options: Any) -> Callable[[list[int], float, str | None], Any]:
    """Constructor of a network of `keras.applications` without its top and without its own scaling."""

    def build(shape: list[int], alpha: float, weights: str | None) -> keras.Model:
        width = {"alpha": alpha} if has_alpha else {}
        return getattr(keras.applications, name)(
            input_shape=shape, include_top=False, weights=weights, **width, **options
        )

    return build


def _tiny(shape: list[int], alpha: float, weights: str | None) -> keras.Model:
    """A strided convolution for each stage: cheap to build, compile and run; for tests."""
    images = x = keras.Input(shape)
    for stage, filters in zip(STAGES, (8, 16, 24, 32, 48), strict=True):
        x = keras.layers.Conv2D(max(1, round(filters * alpha)), 3, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(name=f"{stage}_norm")(x)
        x = keras.layers.ReLU(name=stage)(x)
    return keras.Model(images, x)


_UNSCALED = {"include_preprocessing": False}
_EFFICIENTNET_V2_TAPS = (
    "into block2a_expand_conv", "into block3a_expand_conv", "into block4a_dwconv2", "into block6a_dwconv2",
    "into top_conv",
)  # fmt: skip
_ENCODERS = {
    # Sandler et al. 2018; Howard et al. 2019; Tan and Le 2021; He et al. 2016; Liu et al. 2022.
    "mobilenet_v2": _Encoder(
        _of_keras("MobileNetV2", has_alpha=True),
        ("block_1_expand_relu", "block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu",
         "block_16_project"),
    ),
    "mobilenet_v3_small": _Encoder(
        _of_keras("MobileNetV3Small", has_alpha=True, **_UNSCALED),
        ("into expanded_conv_depthwise_pad", "into expanded_conv_1_depthwise_pad", "into expanded_conv_3_depthwise_pad",
         "into expanded_conv_8_depthwise_pad", "expanded_conv_10_add"),
    ),
    "mobilenet_v3_large": _Encoder(
        _of_keras("MobileNetV3Large", has_alpha=True, **_UNSCALED),
        ("into expanded_conv_1_depthwise_pad", "into expanded_conv_3_depthwise_pad",
         "into expanded_conv_6_depthwise_pad", "into expanded_conv_12_depthwise_pad", "expanded_conv_14_add"),
    ),
    **{
        f"efficientnet_v2_b{number}": _Encoder(
            _of_keras(f"EfficientNetV2B{number}", **_UNSCALED), _EFFICIENTNET_V2_TAPS, STANDARDIZED
        )
        for number in range(4)
    },
    "resnet50_v2": _Encoder(
        _of_keras("ResNet50V2"),
        ("conv1_conv", "conv2_block3_1_relu", "conv3_block4_1_relu", "conv4_block6_1_relu", OUTPUT),
    ),
    "convnext_tiny": _Encoder(
        _of_keras("ConvNeXtTiny", **_UNSCALED),
        (PICTURE, "convnext_tiny_stage_0_block_2_identity", "convnext_tiny_stage_1_block_2_identity",
         "convnext_tiny_stage_2_block_8_identity", OUTPUT),
        STANDARDIZED,
    ),
    "tiny": _Encoder(_tiny, STAGES),
}  # fmt: skip
assert tuple(_ENCODERS) == ENCODERS


def build_encoder(
    name: str, *, image_size: tuple[int, int], alpha: float = 1.0, weights: str = "none", channels: int = 3
) -> keras.Model:
    """Builds an encoder: a model with five feature maps, at 1/2 to 1/32 of the input size, finest first.

    Args:
      name: one of `petseg.config.model_config.ENCODERS`, or code of the user: a function of the image size and the
        number of channels to a functional Keras model with the five maps as outputs, with initial weights of its own.
      image_size: height and width of the input in pixels, multiples of 32.
      alpha: width factor of the channels; 1 for encoders of one width.
      weights: "none", "imagenet", or a file; see `pretrained_weights.build_with_weights`. For code of the user, a file
        replaces the weights of its own. Pretrained weights of petseg's encoders are of RGB; for other channels, the
        first convolution is adapted by `pretrained_weights.adapt_channels`.
      channels: number of channels of the input.

    Raises:
      ConfigError: if the weights cannot be loaded, a feature map has another size, or the user's function fails.
    """
    if custom_code.is_reference(name):
        backbone = pretrained_weights.build_with_weights(
            lambda _: _own(name, image_size, channels), "none" if weights == "imagenet" else weights
        )
        outputs = backbone.outputs
    else:
        backbone = _backbone(_ENCODERS[name], image_size, alpha, weights, channels)
        outputs = [_tap(backbone, tap) for tap in _ENCODERS[name].taps]
    wanted = [tuple(side // 2**level for side in image_size) for level in range(1, LEVELS + 1)]
    found = [tuple(output.shape[1:3]) for output in outputs]
    if found != wanted:
        raise ConfigError(f"--encoder={name}: its maps of {image_size} pixels are {found}; must be {wanted}")
    return keras.Model(backbone.inputs[0], outputs, name="encoder")


def _own(reference: str, image_size: tuple[int, int], channels: int) -> keras.Model:
    made = custom_code.call("encoder", reference, image_size, channels)
    if not isinstance(made, keras.Model) or not hasattr(made, "outputs"):
        raise ConfigError(
            f"--encoder={reference}: returned {type(made).__name__}; must be a functional Keras model with {LEVELS} "
            "feature maps as outputs, at 1/2 to 1/32 of the image size"
        )
    return made


def _backbone(kind: _Encoder, image_size: tuple[int, int], alpha: float, weights: str, channels: int) -> keras.Model:
    """The network of an encoder with its weights, adapted to the channels of the input."""
    count = channels if weights == "none" else 3
    backbone = pretrained_weights.build_with_weights(
        lambda source: kind.build([*image_size, count], alpha, source), weights
    )
    if count == channels:
        return backbone
    adapted = kind.build([*image_size, channels], alpha, None)
    pretrained_weights.adapt_channels(backbone, adapted)
    return adapted


def _tap(backbone: keras.Model, tap: str) -> keras.KerasTensor:
    if tap == PICTURE:
        return SpaceToDepth(2, name=PICTURE)(backbone.inputs[0])
    if tap == OUTPUT:
        return backbone.outputs[0]
    if tap.startswith(INTO):
        return backbone.get_layer(tap.removeprefix(INTO)).input
    return backbone.get_layer(tap).output


def scaling(encoder: str, input_scaling: str, channels: int = 3) -> tuple[Any, Any]:
    """Factor and offset of pixels in [0, 255], as numbers or lists by channel.

    Statistics of red, green and blue are repeated over other channels, as the weights of the first convolution are;
    one channel has their mean.

    Args:
      encoder: one of `petseg.config.model_config.ENCODERS`.
      input_scaling: "unit" for [0, 1], "symmetric" for [-1, 1], "encoder" as its pretrained weights expect.
      channels: number of channels.
    """
    factor, offset = _ENCODERS[encoder].scaling if input_scaling == "encoder" else SCALINGS[input_scaling]
    return _by_channel(factor, channels), _by_channel(offset, channels)


def _by_channel(values: Any, channels: int) -> Any:
    if not isinstance(values, list) or channels == 3:
        return values
    return [sum(values) / 3] if channels == 1 else [values[channel % 3] for channel in range(channels)]


def freeze_before(encoder: keras.Model, first_trained: str) -> list[bool]:
    """Freezes the first layers of a trainable encoder.

    Args:
      encoder: an encoder from `build_encoder`.
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
    frozen = {id(layer) for layer in _needed_by(before)}
    for layer in encoder.layers:
        layer.trainable = id(layer) not in frozen
    return [any(layer.trainable_weights for layer in _needed_by([output])) for output in encoder.outputs]


def _needed_by(tensors: Sequence[Any]) -> list[keras.Layer]:
    """The layers of a functional model that some tensors depend on."""
    found: dict[int, keras.Layer] = {}
    waiting = list(tensors)
    while waiting:
        layer, node, _ = waiting.pop()._keras_history
        if id(layer) not in found:
            found[id(layer)] = layer
            waiting += layer._inbound_nodes[node].input_tensors
    return list(found.values())


def calibrate_batch_norm(encoder: keras.Model, images: tf.Tensor) -> None:
    """Sets the moving statistics of all batch norms to those of some images.

    A data-dependent initialisation (Krähenbühl et al. 2016) that random encoders need: their batch norms run in
    inference mode, and with initial statistics, mean 0 and variance 1, the signal vanishes within a few blocks.

    Args:
      encoder: the encoder to change, from `build_encoder`.
      images: float32 [B, H, W, C], scaled as in training.
    """
    layers = list(encoder._flatten_layers())
    trainable = [layer.trainable for layer in layers]
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    momentum = [layer.momentum for layer in norms]
    encoder.trainable = True  # a frozen batch norm would ignore training=True
    for layer in norms:
        layer.momentum = 0.0
    encoder(images, training=True)
    for layer, value in zip(norms, momentum, strict=True):
        layer.momentum = value
    for layer, value in zip(layers, trainable, strict=True):
        layer.trainable = value
