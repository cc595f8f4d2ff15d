"""The network: a U-Net (Ronneberger et al. 2015) of an encoder and a pix2pix-style decoder."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from petseg.models.layers import Conv2DTranspose, InferenceMode

DECODER_FILTERS = (512, 256, 128, 64)


def build_unet(
    *,
    image_size: tuple[int, int],
    num_classes: int,
    encoder: keras.Model,
    train_encoder: bool,
    input_scaling: str,
    batch_norm_momentum: float = 0.99,
    sync_batch_norm: bool = False,
) -> keras.Model:
    """Builds the U-Net.

    Input: float32 [B, H, W, 3], pixels in [0, 255]; the network scales them itself, so nobody can forget to.
    Output: float32 [B, H, W, C] logits.

    The encoder's batch norms always run in inference mode, also when their scales and offsets are trained: statistics
    of small batches would undo what was learnt on ImageNet.

    Args:
      image_size: height H and width W in pixels, multiples of 32.
      num_classes: number of classes C.
      encoder: an encoder for the same size, as `build_encoder` returns it.
      train_encoder: whether the encoder's weights are trainable.
      input_scaling: "unit" for [0, 1], "symmetric" for [-1, 1].
      batch_norm_momentum: how slowly the decoder's batch norms move the statistics that inference uses.
      sync_batch_norm: whether the decoder's batch norms use statistics of the global batch.
    """
    scale, offset = {"unit": (1 / 255.0, 0.0), "symmetric": (1 / 127.5, -1.0)}[input_scaling]
    images = keras.Input([*image_size, 3], name="image")
    x = keras.layers.Rescaling(scale, offset, dtype="float32", name="scaling")(images)
    *skips, x = InferenceMode(encoder, trainable=train_encoder, name="encoder")(x)
    trained_channels = None  # no gradient is wanted of what comes from a frozen encoder
    for filters, skip in zip(DECODER_FILTERS, reversed(skips), strict=True):
        x = _upsample(x, filters, trained_channels, momentum=batch_norm_momentum, synchronized=sync_batch_norm)
        x = keras.layers.Concatenate(name=f"skip_{filters}")([x, skip])
        trained_channels = None if train_encoder else filters
    logits = Conv2DTranspose(
        num_classes, 3, trained_channels, strides=2, padding="same", dtype="float32", name="logits"
    )(x)
    return keras.Model(images, logits, name="unet")


def _upsample(x: keras.KerasTensor, filters: int, trained_channels: int | None, **batch_norm: Any) -> keras.KerasTensor:
    """pix2pix's decoder block (Isola et al. 2017), without its dropout: twice the size, `filters` channels."""
    initializer = keras.initializers.RandomNormal(0.0, 0.02)
    x = Conv2DTranspose(
        filters,
        3,
        trained_channels,
        strides=2,
        padding="same",
        use_bias=False,
        kernel_initializer=initializer,
        name=f"upsample_{filters}",
    )(x)
    x = keras.layers.BatchNormalization(**batch_norm, name=f"batch_norm_{filters}")(x)
    return keras.layers.ReLU(name=f"relu_{filters}")(x)


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Builds layers under a dtype policy: "float32", "mixed_float16" or "mixed_bfloat16".

    Keras's applications take no policy as an argument, only from a global variable.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
