"""The network: a U-Net (Ronneberger et al. 2015) with a MobileNetV2 encoder and a pix2pix-style decoder."""

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from petseg.errors import ConfigError

# Outputs of MobileNetV2 at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input's size.
SKIP_LAYERS = ("block_1_expand_relu", "block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu")
BOTTLENECK_LAYER = "block_16_project"
DECODER_FILTERS = (512, 256, 128, 64)


def build_unet(
    *,
    image_size: int,
    num_classes: int,
    encoder: keras.Model,
    train_encoder: bool,
    input_scaling: str,
    batch_norm_momentum: float = 0.99,
    sync_batch_norm: bool = False,
) -> keras.Model:
    """Builds the U-Net.

    Input: float32 [B, S, S, 3], pixels in [0, 255]; the network scales them itself, so nobody can forget to.
    Output: float32 [B, S, S, C] logits.

    The encoder's batch norms always run in inference mode, also when their scales and offsets are trained: statistics
    of small batches would undo what was learnt on ImageNet.

    Args:
      image_size: side S in pixels, a multiple of 32.
      num_classes: number of classes C.
      encoder: what `build_encoder` returned for the same size.
      train_encoder: whether the encoder's weights are trainable.
      input_scaling: "unit" for [0, 1], "symmetric" for [-1, 1].
      batch_norm_momentum: how slowly the decoder's batch norms move the statistics that inference uses.
      sync_batch_norm: whether the decoder's batch norms use statistics of the global batch.
    """
    scale, offset = {"unit": (1 / 255.0, 0.0), "symmetric": (1 / 127.5, -1.0)}[input_scaling]
    images = keras.Input([image_size, image_size, 3], name="image")
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


@keras.saving.register_keras_serializable("petseg")
class InferenceMode(keras.layers.Layer):
    """Calls a model with ``training=False``, whatever the mode of the model around it.

    ``encoder(x, training=False)`` alone does not hold in Keras 3: a functional model that is called with
    ``training=True`` hands that on to its layers and overrides what they were built with.
    """

    def __init__(self, model: keras.Model, **kwargs: Any):
        super().__init__(**kwargs)
        self.model = model
        self.model.trainable = self.trainable

    def call(self, inputs: tf.Tensor) -> list[tf.Tensor]:
        return self.model(inputs, training=False)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "InferenceMode":
        return cls(keras.saving.deserialize_keras_object(config.pop("model")), **config)


@keras.saving.register_keras_serializable("petseg")
class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """Keras's, but it can leave out the gradient of some of its input.

    The skip connections of a frozen encoder are concatenated to what the decoder has made. Their gradients lead
    nowhere, and cost a tenth of a training step.

    Args:
      filters: as in Keras.
      kernel_size: likewise.
      trained_channels: the input's first channels, whose gradient is computed, while that of the rest is 0; None for
        all.
      **kwargs: likewise.
    """

    def __init__(self, filters: int, kernel_size: Any, trained_channels: int | None = None, **kwargs: Any):
        super().__init__(filters, kernel_size, **kwargs)
        self.trained_channels = trained_channels

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if self.trained_channels is None or not training:
            return super().call(inputs)
        outputs = self._convolve(inputs, tf.convert_to_tensor(self.kernel))
        return tf.nn.bias_add(outputs, tf.convert_to_tensor(self.bias)) if self.use_bias else outputs

    def _convolve(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        strides, padding = list(self.strides), self.padding.upper()

        @tf.custom_gradient
        def convolve(inputs: tf.Tensor, kernel: tf.Tensor) -> Any:
            def gradients(of_outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                of_inputs = tf.nn.conv2d(of_outputs, kernel[..., : self.trained_channels], strides, padding)
                rest = inputs.shape[-1] - self.trained_channels
                of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                    input=of_outputs,
                    filter_sizes=tf.shape(kernel),
                    out_backprop=inputs,
                    strides=[1, *strides, 1],
                    padding=padding,
                )
                return tf.pad(of_inputs, [[0, 0], [0, 0], [0, 0], [0, rest]]), of_kernel

            outputs = keras.ops.conv_transpose(inputs, kernel, strides=strides, padding=self.padding)
            return outputs, gradients

        return convolve(inputs, kernel)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "trained_channels": self.trained_channels}


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


def build_encoder(*, image_size: int, alpha: float, weights: str = "none") -> keras.Model:
    """MobileNetV2 (Sandler et al. 2018) as a model with five outputs, finest first.

    Args:
      image_size: side of the input in pixels, a multiple of 32.
      alpha: width factor.
      weights: "none" for random ones, "imagenet" for those that Keras downloads once, or a file of MobileNetV2 without
        its top, as `keras.Model.save_weights` writes it.

    Raises:
      ConfigError: if the weights cannot be had or do not fit.
    """
    shape = [image_size, image_size, 3]
    if weights == "imagenet":
        try:
            backbone = keras.applications.MobileNetV2(input_shape=shape, alpha=alpha, include_top=False)
        except Exception as error:  # Keras lets every kind of network error through
            raise ConfigError(
                "--encoder_weights=imagenet: cannot be downloaded; takes a file that has been, or none "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
    else:
        backbone = keras.applications.MobileNetV2(input_shape=shape, alpha=alpha, include_top=False, weights=None)
    if weights not in ("imagenet", "none"):
        _load_file(backbone, weights)
    outputs = [backbone.get_layer(name).output for name in (*SKIP_LAYERS, BOTTLENECK_LAYER)]
    return keras.Model(backbone.inputs[0], outputs, name="encoder")


def check_encoder_weights(weights: str) -> None:
    """Raises ConfigError if `weights` is neither "imagenet" nor "none" nor a file."""
    if weights not in ("imagenet", "none") and not os.path.isfile(weights):
        raise ConfigError(f"--encoder_weights={weights}: no such file; takes imagenet, none, or a weights file")


def _load_file(model: keras.Model, path: str) -> None:
    check_encoder_weights(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns once per layer of a file that does not fit
            model.load_weights(path)
    except Exception as error:  # h5py and Keras raise ValueError, OSError, KeyError and more for a wrong file
        raise ConfigError(f"--encoder_weights={path}: does not fit this encoder: {_mismatch(error)}") from error


def _mismatch(error: Exception) -> str:
    """The first layer that a weights file does not fit, out of Keras's long message."""
    text = " ".join(str(error).split())
    layer = re.search(r"name=(\w+)", text)
    shapes = re.search(r"variable\.shape=(\(.*?\)), Received: value\.shape=(\(.*?\))", text)
    if layer and shapes:
        return f"layer {layer[1]} has shape {shapes[1]}, the file has {shapes[2]}"
    return f"layer {layer[1]}: {text[:200]}" if layer else text[:200]


def calibrate_batch_norm(encoder: keras.Model, images: tf.Tensor) -> None:
    """Sets the moving statistics of every batch norm to those of some images.

    A randomly initialised encoder needs this. Its batch norms run in inference mode; with the initial statistics, mean
    0 and variance 1, they normalise nothing, and the signal dies out within a few blocks. (Data-dependent
    initialisation, as in Krähenbühl et al. 2016.)

    Args:
      encoder: the model to change.
      images: float32 [B, S, S, 3], scaled as in training.
    """
    norms = [layer for layer in encoder.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momentum = [layer.momentum for layer in norms]
    trainable = encoder.trainable
    encoder.trainable = True  # a frozen batch norm would ignore training=True
    for layer in norms:
        layer.momentum = 0.0
    encoder(images, training=True)
    for layer, value in zip(norms, momentum, strict=True):
        layer.momentum = value
    encoder.trainable = trainable
