"""Decoders by name: from five feature maps of an encoder to one of half or a quarter of its size, and to logits."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from petseg import custom_code
from petseg.config.model_config import DECODERS
from petseg.errors import ConfigError
from petseg.models.layers import BilinearUpsample, Conv2D, Conv2DTranspose, DepthToSpace, Upsample

PIX2PIX_FILTERS = (512, 256, 128, 64)
LIGHT_FILTERS = (128, 96, 64, 48)
LIGHTER_FILTERS = (96, 64, 48, 32)
ATROUS_RATES, ATROUS_MAP = (6, 12, 18), 33  # of DeepLab, for maps of 33 x 33
WIDTH, PYRAMID_WIDTH, DETAIL_WIDTH, BRANCH_WIDTH = 256, 256, 48, 128  # channels, those of the papers


class Taps(NamedTuple):
    """The inputs of a decoder."""

    image: keras.KerasTensor  # the scaled image, [B, H, W, C]
    skips: Sequence[keras.KerasTensor]  # the encoder's feature maps at 1/2, 1/4, 1/8 and 1/16 of the image size
    # the encoder's feature map at 1/32 of the image size, or at 1/16 for decoders that prefer that
    bottleneck: keras.KerasTensor
    # for each skip, whether it depends on trained weights. If not, its gradient is not computed
    trained: Sequence[bool]


class _Decoder(NamedTuple):
    """A decoder."""

    # (taps, batch-norm options) -> feature map of half or a quarter of the image size
    build: Callable[[Taps, Mapping[str, Any]], keras.KerasTensor]
    # (that map, taps, number of classes) -> logits at the image size
    logits: Callable[[keras.KerasTensor, Taps, int], keras.KerasTensor]
    # (that map, number of classes) -> logits at half the image size
    half_size_logits: Callable[[keras.KerasTensor, int], keras.KerasTensor]
    # whether the encoder's last map should be at 1/16 of the image size, by dilated convolutions
    prefers_dilation: bool = False


def prefers_dilation(name: str) -> bool:
    """Whether the decoder of this name needs the encoder's last map at 1/16 of the image size (output stride 16)."""
    return not custom_code.is_reference(name) and _DECODERS[name].prefers_dilation


def decode(name: str, taps: Taps, batch_norm: Mapping[str, Any]) -> keras.KerasTensor:
    """The output of a decoder, a feature map of half or a quarter of the image size.

    Args:
      name: one of `petseg.config.model_config.DECODERS`, or user code: a function of these `taps` and
        `batch_norm` to the map.
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


def logits(
    name: str, features: keras.KerasTensor, taps: Taps, num_classes: int, *, half_size: bool = False
) -> keras.KerasTensor:
    """Float32 logits at the image size, or half of it, from the feature map of the decoder of this name."""
    decoder = _DECODERS["light" if custom_code.is_reference(name) else name]
    return decoder.half_size_logits(features, num_classes) if half_size else decoder.logits(features, taps, num_classes)


def _half_size_logits(features: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    return Conv2D(num_classes, 3, padding="same", dtype="float32", name="logits")(features)


def _pix2pix(taps: Taps, batch_norm: Mapping[str, Any]) -> keras.KerasTensor:
    """The tutorial's decoder: blocks of pix2pix (Isola et al. 2017) without dropout, each followed by a skip."""
    x, trained_channels = taps.bottleneck, None
    for filters, skip, trained in zip(PIX2PIX_FILTERS, reversed(taps.skips), reversed(taps.trained), strict=True):
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
        x = keras.layers.ReLU(name=f"relu_{filters}")(x)
        x = keras.layers.Concatenate(name=f"skip_{filters}")([x, skip])
        trained_channels = None if trained else filters
    return x


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


def _deeplab_v3plus(taps: Taps, batch_norm: Mapping[str, Any]) -> keras.KerasTensor:
    """DeepLabv3+ (Chen et al. 2018) with separable convolutions, at 1/4 of the image size.

    An atrous spatial pyramid at the last map: a 1x1 convolution, three dilated ones, and the mean of the image. It is
    upsampled and joined with details of the map at 1/4.
    """
    x, details = taps.bottleneck, taps.skips[1]
    parts = [_conv_norm_relu(x, WIDTH, "pyramid_1x1", batch_norm)]
    for i, rate in enumerate(atrous_rates(min(x.shape[1:3])), start=1):
        parts.append(_separable(x, WIDTH, f"pyramid_{i}", batch_norm, rate))
    # No batch norm here: of a micro-batch of one image, one number for each channel has no variance.
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name="pyramid_mean")(x)
    mean = keras.layers.Conv2D(WIDTH, 1, activation="relu", name="pyramid_mean_conv")(mean)
    joined = keras.layers.Concatenate(name="pyramid")(parts)
    # A 1x1 convolution of a concatenation is a sum of 1x1 convolutions, and the mean's is the same at all pixels.
    joined = [_conv(joined, WIDTH, 1, "project"), _conv(mean, WIDTH, 1, "project_mean")]
    x = keras.layers.Add(name="add_mean")(joined)
    x = _norm_relu(x, "project", batch_norm)
    x = BilinearUpsample(details.shape[1] // x.shape[1], name="upsample")(x)
    details = _conv_norm_relu(details, DETAIL_WIDTH, "details", batch_norm)
    x = keras.layers.Concatenate(name="skip")([x, details])
    for i in (1, 2):
        x = _separable(x, WIDTH, f"refine_{i}", batch_norm)
    return x


def atrous_rates(side: int) -> tuple[int, ...]:
    """Dilation rates that fit a map: DeepLab's, scaled down for maps whose shorter side is below 33 pixels.

    With a rate of at least the map's side, a 3x3 convolution is a 1x1 convolution, the rest of it sees padding.
    """
    return tuple(max(1, round(rate * min(1, side / ATROUS_MAP))) for rate in ATROUS_RATES)


def _fpn(taps: Taps, batch_norm: Mapping[str, Any]) -> keras.KerasTensor:
    """Semantic branch of Panoptic FPN (Kirillov et al. 2019), with batch norm for group norm; at 1/4 of the image size.

    A top-down pyramid of 1x1 convolutions and sums. Each of its maps is brought to 1/4 by 3x3 convolutions, each but
    the finest's followed by upsampling; the results are added.
    """
    maps = [taps.bottleneck, *reversed(taps.skips[1:])]
    top, branches = None, []
    for level, each in zip((5, 4, 3, 2), maps, strict=True):
        lateral = keras.layers.Conv2D(PYRAMID_WIDTH, 1, name=f"lateral_{level}")(each)
        if top is not None:
            top = Upsample(name=f"top_down_{level}")(top)
            lateral = keras.layers.Add(name=f"pyramid_{level}")([top, lateral])
        top = x = lateral
        for i in range(max(1, level - 2)):
            x = _conv_norm_relu(x, BRANCH_WIDTH, f"branch_{level}_{i}", batch_norm, 3)
            if level > 2:
                x = BilinearUpsample(name=f"branch_{level}_{i}_upsample")(x)
        branches.append(x)
    return keras.layers.Add(name="sum")(branches)


def _segformer(taps: Taps, batch_norm: Mapping[str, Any]) -> keras.KerasTensor:
    """All-MLP decoder of SegFormer (Xie et al. 2021) without dropout, at 1/4 of the image size.

    Each of four maps goes through a linear layer; all are upsampled, concatenated, and fused by another. Here the
    second layer comes before upsampling, as a sum: the same function, of which less is computed at 1/4.
    """
    parts = []
    for level, each in zip((2, 3, 4, 5), [*taps.skips[1:], taps.bottleneck], strict=True):
        x = Conv2D(WIDTH, 1, padding="same", name=f"linear_{level}")(each)
        x = _conv(x, WIDTH, 1, f"fuse_{level}")
        parts.append(x if level == 2 else BilinearUpsample(2 ** (level - 2), name=f"upsample_{level}")(x))
    return _norm_relu(keras.layers.Add(name="sum")(parts), "fuse", batch_norm)


def _conv_norm_relu(
    x: keras.KerasTensor, filters: int, name: str, batch_norm: Mapping[str, Any], size: int = 1
) -> keras.KerasTensor:
    return _norm_relu(_conv(x, filters, size, f"{name}_conv"), name, batch_norm)


def _norm_relu(x: keras.KerasTensor, name: str, batch_norm: Mapping[str, Any]) -> keras.KerasTensor:
    x = keras.layers.BatchNormalization(**batch_norm, name=f"{name}_batch_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _separable(
    x: keras.KerasTensor, filters: int, name: str, batch_norm: Mapping[str, Any], rate: int = 1
) -> keras.KerasTensor:
    """A 3x3 depthwise convolution with a dilation rate and a 1x1 convolution."""
    depthwise = keras.layers.DepthwiseConv2D(
        3, padding="same", dilation_rate=rate, use_bias=False, name=f"{name}_depthwise"
    )
    return _conv_norm_relu(depthwise(x), filters, name, batch_norm)


def _upsampled_logits(x: keras.KerasTensor, num_classes: int, factor: int) -> keras.KerasTensor:
    x = Conv2D(num_classes, 1, padding="same", dtype="float32", name="logits")(x)
    return BilinearUpsample(factor, dtype="float32", name="pixels")(x)


def _at_quarter_size(build: Callable[[Taps, Mapping[str, Any]], keras.KerasTensor], **options: Any) -> _Decoder:
    """A decoder whose map has a quarter of the image size."""
    return _Decoder(
        build,
        lambda x, _, num_classes: _upsampled_logits(x, num_classes, 4),
        functools.partial(_upsampled_logits, factor=2),
        **options,
    )


_DECODERS = {
    "pix2pix": _Decoder(_pix2pix, _pix2pix_logits, _half_size_logits),
    "light": _Decoder(_light, _light_logits, _half_size_logits),
    "lighter": _Decoder(functools.partial(_light, widths=LIGHTER_FILTERS), _light_logits, _half_size_logits),
    "deeplab_v3plus": _at_quarter_size(_deeplab_v3plus, prefers_dilation=True),
    "fpn": _at_quarter_size(_fpn),
    "segformer": _at_quarter_size(_segformer),
}
assert tuple(_DECODERS) == DECODERS
