"""A trained encoder's pass with its batch norms folded into the convolutions before them.

In inference mode a batch norm multiplies and adds by channel. Done to the kernel, before the convolution, that is a
matter of a few thousand numbers; done to the map after it, three passes over millions of them in the backward pass, as
many as all else that the encoder does there.
"""

import functools
from typing import Any

import keras
import tensorflow as tf

from petseg.models import convolutions


def call(model: keras.Model, inputs: tf.Tensor) -> list[tf.Tensor]:
    """What `model(inputs, training=False)` returns, and its gradients, but for the order in which floats are added.

    Args:
      model: a functional model.
      inputs: its one input.
    """
    convolution_of = _pairs(model)
    folded = {id(convolution) for convolution in convolution_of.values()}

    def operation(layer: Any) -> Any:
        if id(layer) in folded:
            return lambda x, **_: x  # the batch norm does it
        if id(layer) in convolution_of:
            return lambda x, **_: _convolve_and_normalize(convolution_of[id(layer)], layer, x)
        return functools.partial(layer, training=False) if getattr(layer, "_call_has_training_arg", False) else layer

    return model._run_through_graph(inputs, operation_fn=operation)


def _pairs(model: keras.Model) -> dict[int, keras.Layer]:
    """The convolutions of a model that only a batch norm reads, by the batch norm's id."""
    nodes = [node for level in model._nodes_by_depth.values() for node in level if node.operation]
    readers: dict[int, list[Any]] = {id(output): [None] for output in model.outputs}
    uses: dict[int, int] = {}
    for node in nodes:
        uses[id(node.operation)] = uses.get(id(node.operation), 0) + 1
        for tensor in node.input_tensors:
            readers.setdefault(id(tensor), []).append(node.operation)
    pairs = {}
    for node in nodes:
        reader = readers.get(id(node.outputs[0]), [])
        if (
            type(node.operation) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
            and node.operation.activation is keras.activations.linear
            and node.operation.data_format == "channels_last"
            and len(reader) == 1
            and isinstance(reader[0], keras.layers.BatchNormalization)
            and reader[0].axis in (-1, 3)
            and uses[id(node.operation)] == uses[id(reader[0])] == 1
        ):
            pairs[id(reader[0])] = node.operation
    return pairs


def _convolve_and_normalize(convolution: keras.Layer, norm: keras.layers.BatchNormalization, x: tf.Tensor) -> tf.Tensor:
    factor = tf.math.rsqrt(norm.moving_variance + norm.epsilon)
    if norm.scale:
        factor *= norm.gamma
    offset = -norm.moving_mean * factor
    if norm.center:
        offset += norm.beta
    if convolution.use_bias:
        offset += convolution.bias * factor
    kernel, strides = tf.convert_to_tensor(convolution.kernel), list(convolution.strides)
    padding, dilations = convolution.padding.upper(), list(convolution.dilation_rate)
    if isinstance(convolution, keras.layers.DepthwiseConv2D):
        kernel *= tf.reshape(factor, kernel.shape[2:])
        outputs = tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], padding, dilations=dilations)
    elif kernel.shape[:2] == (1, 1) and strides == [1, 1] and kernel.shape[2] == x.shape[-1]:
        outputs = convolutions.pointwise(x, kernel * factor)
    else:
        outputs = tf.nn.conv2d(x, kernel * factor, strides, padding, dilations=dilations)
    return tf.nn.bias_add(outputs, offset)
