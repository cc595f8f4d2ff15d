"""U-Net (Ronneberger et al. 2015) of an encoder and a decoder."""

from typing import Any

import keras

from petseg.models import decoders, dilation, encoders, layers
from petseg.models.decoders import Taps
from petseg.models.layers import InferenceMode


def build_unet(
    *,
    image_size: tuple[int, int],
    num_classes: int,
    encoder: keras.Model,
    train_encoder: bool,
    input_scaling: Any,
    decoder: str = "pix2pix",
    first_trained: str = "all",
    batch_norm_momentum: float = 0.99,
    sync_batch_norm: bool = False,
) -> keras.Model:
    """Builds the U-Net.

    Input: float32 [B, H, W, channels of the encoder], pixels in [0, 255], which the network scales itself. Output:
    float32 [B, H, W, C] logits. The encoder's batch norms always run in inference mode, even if their scales and
    offsets are trained: statistics of small batches would undo ImageNet pretraining.

    Args:
      image_size: height H and width W in pixels; multiples of 32 if the encoder has the same size.
      encoder: an encoder from `build_encoder`. If its input size differs from `image_size`, images are resized to it,
        and logits, computed at half of it, are resized back.
      input_scaling: "unit" for [0, 1], "symmetric" for [-1, 1], or a pair of factor and offset.
      decoder: one of `petseg.config.model_config.DECODERS`.
      first_trained: first trained stage or layer of a trainable encoder; see `encoders.freeze_before`.
      sync_batch_norm: whether the decoder's batch norms use statistics of the global batch.

    Raises:
      ConfigError: if the encoder has no layer named `first_trained`.
    """
    if decoders.prefers_dilation(decoder):
        encoder = dilation.dilated(encoder)
    scale, offset = encoders.SCALINGS[input_scaling] if isinstance(input_scaling, str) else input_scaling
    inner_size = tuple(encoder.input_shape[1:3])
    images = x = keras.Input([*image_size, encoder.input_shape[3]], name="image")
    if inner_size != tuple(image_size):
        x = keras.layers.Resizing(*inner_size, dtype="float32", name="enlarge")(x)
    x = keras.layers.Rescaling(scale, offset, dtype="float32", name="scaling")(x)
    layer = InferenceMode(encoder, trainable=train_encoder, name="encoder")
    trained = encoders.freeze_before(encoder, first_trained) if train_encoder else [False] * encoders.LEVELS
    *skips, bottleneck = layer(x)
    taps = Taps(x, skips, bottleneck, trained[:-1])
    batch_norm = {"momentum": batch_norm_momentum, "synchronized": sync_batch_norm}
    features = decoders.decode(decoder, taps, batch_norm)
    logits = decoders.logits(decoder, features, taps, num_classes, half_size=inner_size != tuple(image_size))
    if tuple(logits.shape[1:3]) != tuple(image_size):
        logits = keras.layers.Resizing(*image_size, dtype="float32", name="shrink")(logits)
    model = keras.Model(images, logits, name="unet")
    layers.track_weights(model)
    return model


def accept_any_size(network: keras.Model) -> None:
    """Lets a network be called with images of other heights and widths than it was built for.

    Its layers decide whether they can be: a U-Net without inner size takes multiples of 32.
    """
    for model in network._flatten_layers():
        if isinstance(model, keras.Model):
            model.input_spec = keras.layers.InputSpec(ndim=4)
