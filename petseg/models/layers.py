"""Layers that Keras lacks: a model held in inference mode, a transposed convolution that leaves out gradients."""

from typing import Any

import keras
import tensorflow as tf


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
      filters: number of output channels.
      kernel_size: height and width of the kernel, one number or two.
      trained_channels: the input's first channels, whose gradient is computed, while that of the rest is 0; None for
        all.
      **kwargs: what Keras's own layer is given besides.
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
