"""Decoders by name: from five feature maps of an encoder to one of half the image size, and to logits."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from petseg import custom_code
from petseg.config.model_config import DECODERS
from petseg.errors import ConfigError
from petseg.models.layers import Conv2D, Conv2DTranspose, DepthToSpace, Upsample

PIX2PIX_FILTERS = (512, 256, 128, 64)
LIGHT_FILTERS = (128, 96, 64, 48)
LIGHTER_FILTERS = (96, 64, 48, 32)


class Taps(NamedTuple):
    """The inputs of a decoder.

    Attributes:
      image: the scaled image, [B, H, W, C].
      skips: the encoder's feature maps at 1/2, 1/4, 1/8 and 1/16 of the image size.
      bottleneck: the encoder's feature map at 1/32 of the image size.
      trained: for each skip, whether it depends on trained weights. If not, its gradient is not computed.
    """

    image: keras.KerasTensor
    skips: Sequence[keras.KerasTensor]
    bottleneck: keras.KerasTensor
    trained: Sequence[bool]


class _Decoder(NamedTuple):
    """A decoder.

    Attributes:
      build: (taps, batch-norm options) -> feature map of half the image size.
      logits: (that map, taps, number of classes) -> logits at the image size.
    """

    build: Callable[[Taps, Mapping[str, Any]], keras.KerasTensor]
    logits: Callable[[keras.KerasTensor, Taps, int], keras.KerasTensor]


def decode(name: str, taps: Taps, batch_norm: Mapping[str, Any]) -> keras.KerasTensor:
    """The output of a decoder, a feature map of half the image size.

    Args:
      name: one of `petseg.config.model_config.DECODERS`, or code of the user: a function of these `taps` and
        `batch_norm` to the map.
      taps: the image and the encoder's feature maps.
      batch_norm: options of `keras.layers.BatchNormalization`.

    Raises:
      ConfigError: if the user's function fails or its map has another size.
    """
    if not custom_code.is_reference(name):
        return _DECODERS[name].build(taps, batch_norm)
    made, wanted = custom_code.call("decoder", name, taps, batch_norm), tuple(taps.skips[0].shape[:3])
    found = tuple(made.shape[:3]) if isinstance(made, keras.KerasTensor) else type(made).__name__
    if found != wanted:
        raise ConfigError(f"--decoder={name}: returned {found}; must be a Keras tensor {wanted} with any channels")
    return made


def logits(name: str, features: keras.KerasTensor, taps: Taps, num_classes: int) -> keras.KerasTensor:
    """Float32 logits at the image size from the feature map of the decoder of this name."""
    if custom_code.is_reference(name):
        return _light_logits(features, taps, num_classes)
    return _DECODERS[name].logits(features, taps, num_classes)


def half_size_logits(features: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Float32 logits at half the image size from the feature map of any decoder."""
    return Conv2D(num_classes, 3, padding="same", dtype="float32", name="logits")(features)


def _pix2pix(taps: Taps, batch_norm: Mapping[str, Any]) -> keras.KerasTensor:
    """The tutorial's decoder: transposed convolutions, each followed by a concatenation with a skip."""
    x, trained_channels = taps.bottleneck, None
    for filters, skip, trained in zip(PIX2PIX_FILTERS, reversed(taps.skips), reversed(taps.trained), strict=True):
        x = _pix2pix_block(x, filters, trained_channels, batch_norm)
        x = keras.layers.Concatenate(name=f"skip_{filters}")([x, skip])
        trained_channels = None if trained else filters
    return x


def _pix2pix_block(
    x: keras.KerasTensor, filters: int, trained_channels: int | None, batch_norm: Mapping[str, Any]
) -> keras.KerasTensor:
    """Decoder block of pix2pix (Isola et al. 2017) without dropout: doubles the size, `filters` channels."""
    x = Conv2DTranspose(
        filters,
        3,
        trained_channels,
        strides=2,
        padding="same",
        use_bias=False,
        kernel_initializer=keras.initializers.RandomNormal(0.0, 0.02),
        name=f"upsample_{filters}",
    )(x)
    x = keras.layers.BatchNormalization(**batch_norm, name=f"batch_norm_{filters}")(x)
    return keras.layers.ReLU(name=f"relu_{filters}")(x)


def _pix2pix_logits(x: keras.KerasTensor, taps: Taps, num_classes: int) -> keras.KerasTensor:
    trained_channels = None if taps.trained[0] else PIX2PIX_FILTERS[-1]
    layer = Conv2DTranspose(num_classes, 3, trained_channels, strides=2, padding="same", dtype="float32", name="logits")
    return layer(x)


def _light(taps: Taps, batch_norm: Mapping[str, Any], widths: Sequence[int] = LIGHT_FILTERS) -> keras.KerasTensor:
    """Light decoder: few channels, and sums instead of concatenations.

    At each level, 1x1 convolutions bring the lower map (before upsampling) and the skip to the same channels; their sum
    goes through one 3x3 convolution. At half the image size, a strided convolution of the image is added.
    """
    x = taps.bottleneck
    for filters, skip, stride in zip(widths, reversed(taps.skips), (16, 8, 4, 2), strict=True):
        x = _conv(x, filters, 1, f"project_{stride}")
        x = Upsample(name=f"upsample_{stride}")(x)
        parts = [x, _conv(skip, filters, 1, f"skip_{stride}")]
        if stride == 2:
            picture = keras.layers.Conv2D(filters, 2, strides=2, use_bias=False, name="picture")
            parts.append(picture(taps.image))
        x = keras.layers.Add(name=f"sum_{stride}")(parts)
        x = _conv(x, filters, 3, f"conv_{stride}")
        x = keras.layers.BatchNormalization(**batch_norm, name=f"batch_norm_{stride}")(x)
        x = keras.layers.ReLU(name=f"relu_{stride}")(x)
    return x


def _conv(x: keras.KerasTensor, filters: int, size: int, name: str) -> keras.KerasTensor:
    return Conv2D(filters, size, padding="same", use_bias=False, name=name)(x)


def _light_logits(x: keras.KerasTensor, taps: Taps, num_classes: int) -> keras.KerasTensor:
    """Logits of 2 x 2 pixels by one convolution at half the size: a quarter of the cost of full size."""
    x = Conv2D(4 * num_classes, 3, padding="same", dtype="float32", name="logits")(x)
    return DepthToSpace(2, dtype="float32", name="pixels")(x)


_DECODERS = {
    "pix2pix": _Decoder(_pix2pix, _pix2pix_logits),
    "light": _Decoder(_light, _light_logits),
    "lighter": _Decoder(functools.partial(_light, widths=LIGHTER_FILTERS), _light_logits),
}
assert tuple(_DECODERS) == DECODERS
