"""Layers that Keras lacks: inference-mode wrapper, convolutions with cheaper gradients, space to depth."""

from typing import Any

import keras
import tensorflow as tf

from petseg.models import convolutions, folded_norms


def track_weights(model: keras.Model) -> None:
    """Makes `tf.train.Checkpoint` store all weights of a model.

    It does not see layers in a list that grew after it became an attribute of a Keras layer or model.
    """
    stored = {id(each) for each in tf.train.TrackableView(model).descendants()}
    for index, weight in enumerate(model.weights):
        if id(weight) not in stored and id(weight.value) not in stored:
            model._track_trackable(weight, f"weight_{index}")


@keras.saving.register_keras_serializable("petseg")
class InferenceMode(keras.layers.Layer):
    """Calls a model with ``training=False``, whatever the mode of the enclosing model.

    ``encoder(x, training=False)`` is not enough in Keras 3: a functional model called with ``training=True`` passes
    that to its layers and overrides the argument.
    """

    def __init__(self, model: keras.Model, **kwargs: Any):
        super().__init__(**kwargs)
        self.model = model
        self.model.trainable = self.trainable

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> list[tf.Tensor]:
        if training and self.trainable and self.compute_dtype == "float32" and convolutions.faster_here():
            return folded_norms.call(self.model, inputs)  # same values, cheaper gradients
        return self.model(inputs, training=False)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "InferenceMode":
        return cls(keras.saving.deserialize_keras_object(config.pop("model")), **config)


@keras.saving.register_keras_serializable("petseg")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` of stride 1 and padding "same", with gradients that are cheaper on a CPU."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not training or not convolutions.faster_here():
            return super().call(inputs)
        kernel = tf.convert_to_tensor(self.kernel)
        outputs = (convolutions.pointwise if self.kernel_size == (1, 1) else convolutions.same_size)(inputs, kernel)
        return tf.nn.bias_add(outputs, tf.convert_to_tensor(self.bias)) if self.use_bias else outputs


@keras.saving.register_keras_serializable("petseg")
class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` that can omit the gradient of some input channels.

    Skip connections of a frozen encoder need no gradients, which would cost a tenth of a training step.

    Args:
      trained_channels: number of first input channels that get a gradient, the rest gets 0; None for all.
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


class _Upsampling(keras.layers.Layer):
    """Base class of Upsample and BilinearUpsample: [B, H, W, C] -> [B, n * H, n * W, C], by a factor n."""

    def __init__(self, factor: int = 2, **kwargs: Any):
        super().__init__(**kwargs)
        self.factor = factor

    def larger(self, inputs: tf.Tensor) -> list[Any]:
        """Height and width of the outputs: numbers where the input's are known, else scalar tensors."""
        return [self.factor * side for side in keras.ops.shape(inputs)[1:3]]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable("petseg")
class Upsample(_Upsampling):
    """Nearest-neighbour upsampling.

    Keras's `UpSampling2D` takes two passes; XLA lacks the gradient of its `Resizing`.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        size, factor = self.larger(inputs), self.factor

        @tf.custom_gradient
        def upsample(x: tf.Tensor) -> Any:
            def gradient(of_outputs: tf.Tensor) -> tf.Tensor:
                return factor**2 * tf.nn.avg_pool2d(of_outputs, factor, factor, "VALID")

            return tf.raw_ops.ResizeNearestNeighbor(images=x, size=size), gradient

        return upsample(inputs) if training else tf.raw_ops.ResizeNearestNeighbor(images=inputs, size=size)


@keras.saving.register_keras_serializable("petseg")
class BilinearUpsample(_Upsampling):
    """Bilinear upsampling, computed in float32.

    In half precision, XLA's gradient of it is wrong by orders of magnitude. Keras's `UpSampling2D` cannot
    interpolate images of unknown size, as exports take them.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        images = tf.cast(inputs, tf.float32)
        resized = tf.raw_ops.ResizeBilinear(images=images, size=self.larger(inputs), half_pixel_centers=True)
        return tf.cast(resized, self.compute_dtype)


class _Blocks(keras.layers.Layer):
    """Base class of SpaceToDepth and DepthToSpace, for blocks of n x n pixels."""

    def __init__(self, block_size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.block_size = block_size

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "block_size": self.block_size}


@keras.saving.register_keras_serializable("petseg")
class SpaceToDepth(_Blocks):
    """[B, H, W, C] -> [B, H/n, W/n, n * n * C]: blocks of n x n pixels become channels of one."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.space_to_depth(inputs, self.block_size)


@keras.saving.register_keras_serializable("petseg")
class DepthToSpace(_Blocks):
    """[B, H, W, n * n * C] -> [B, n * H, n * W, C], the inverse of `SpaceToDepth`."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.depth_to_space(inputs, self.block_size)
