"""Decoders by name: from the five outputs of an encoder to a map of half the picture's size, and on to logits."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from petseg.config.model_config import DECODERS
from petseg.models.layers import Conv2D, Conv2DTranspose, DepthToSpace, Upsample

PIX2PIX_FILTERS = (512, 256, 128, 64)
LIGHT_FILTERS = (128, 96, 64, 48)
LIGHTER_FILTERS = (96, 64, 48, 32)


class Taps(NamedTuple):
    """What a decoder is given.

    Attributes:
      picture: the scaled picture, [B, H, W, 3].
      skips: the encoder's outputs at 1/2, 1/4, 1/8 and 1/16 of its size.
      bottleneck: the encoder's output at 1/32 of its size.
      trained: for each skip, whether something is trained that it comes from. If not, its gradient is not wanted.
    """

    picture: keras.KerasTensor
    skips: Sequence[keras.KerasTensor]
    bottleneck: keras.KerasTensor
    trained: Sequence[bool]


class _Decoder(NamedTuple):
    """A decoder.

    Attributes:
      build: a function: taps, options of batch norms -> map of half the picture's size.
      logits: a function: that map, taps, number of classes -> logits at the picture's size.
    """

    build: Callable[[Taps, Mapping[str, Any]], keras.KerasTensor]
    logits: Callable[[keras.KerasTensor, Taps, int], keras.KerasTensor]


def decode(name: str, taps: Taps, batch_norm: Mapping[str, Any]) -> keras.KerasTensor:
    """What a decoder makes of an encoder's outputs: a map of half the picture's size.

    Args:
      name: one of `petseg.config.model_config.DECODERS`.
      taps: the encoder's outputs, and the picture.
      batch_norm: options of the batch norms, as `keras.layers.BatchNormalization` takes them.
    """
    return _DECODERS[name].build(taps, batch_norm)


def logits(name: str, features: keras.KerasTensor, taps: Taps, num_classes: int) -> keras.KerasTensor:
    """Float32 logits at the picture's size, out of what the decoder of this name has made."""
    return _DECODERS[name].logits(features, taps, num_classes)


def small_logits(features: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Float32 logits at half the picture's size, out of what any decoder has made."""
    return Conv2D(num_classes, 3, padding="same", dtype="float32", name="logits")(features)


def _pix2pix(taps: Taps, batch_norm: Mapping[str, Any]) -> keras.KerasTensor:
    """The tutorial's: transposed convolutions, each followed by a concatenation with a skip."""
    x, trained_channels = taps.bottleneck, None
    for filters, skip, trained in zip(PIX2PIX_FILTERS, reversed(taps.skips), reversed(taps.trained), strict=True):
        x = _pix2pix_block(x, filters, trained_channels, batch_norm)
        x = keras.layers.Concatenate(name=f"skip_{filters}")([x, skip])
        trained_channels = None if trained else filters
    return x


def _pix2pix_block(
    x: keras.KerasTensor, filters: int, trained_channels: int | None, batch_norm: Mapping[str, Any]
) -> keras.KerasTensor:
    """pix2pix's decoder block (Isola et al. 2017), without its dropout: twice the size, `filters` channels."""
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
    """Few channels, and sums instead of concatenations.

    At each level, the map below and the skip are brought to so many channels by 1x1 convolutions, the former before it
    is upsampled; their sum goes through one 3x3 convolution. At half the picture's size the picture itself joins, two
    by two pixels as one.
    """
    x = taps.bottleneck
    for filters, skip, stride in zip(widths, reversed(taps.skips), (16, 8, 4, 2), strict=True):
        x = _conv(x, filters, 1, f"project_{stride}")
        x = Upsample(name=f"upsample_{stride}")(x)
        parts = [x, _conv(skip, filters, 1, f"skip_{stride}")]
        if stride == 2:
            picture = keras.layers.Conv2D(filters, 2, strides=2, use_bias=False, name="picture")
            parts.append(picture(taps.picture))
        x = keras.layers.Add(name=f"sum_{stride}")(parts)
        x = _conv(x, filters, 3, f"conv_{stride}")
        x = keras.layers.BatchNormalization(**batch_norm, name=f"batch_norm_{stride}")(x)
        x = keras.layers.ReLU(name=f"relu_{stride}")(x)
    return x


def _conv(x: keras.KerasTensor, filters: int, size: int, name: str) -> keras.KerasTensor:
    return Conv2D(filters, size, padding="same", use_bias=False, name=name)(x)


def _light_logits(x: keras.KerasTensor, taps: Taps, num_classes: int) -> keras.KerasTensor:
    """A convolution at half the size makes the logits of two by two pixels: a quarter of one at full size."""
    x = Conv2D(4 * num_classes, 3, padding="same", dtype="float32", name="logits")(x)
    return DepthToSpace(2, dtype="float32", name="pixels")(x)


_DECODERS = {
    "pix2pix": _Decoder(_pix2pix, _pix2pix_logits),
    "light": _Decoder(_light, _light_logits),
    "lighter": _Decoder(functools.partial(_light, widths=LIGHTER_FILTERS), _light_logits),
}
assert tuple(_DECODERS) == DECODERS
