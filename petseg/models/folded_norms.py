"""Batch-norm folding: a trained encoder's pass with batch norms folded into the preceding convolutions.

In inference mode a batch norm scales and shifts channels. Scaling the kernel touches a few thousand numbers; scaling
the feature map costs three passes over millions in the backward pass, half of the encoder's cost there.
"""

import functools
from typing import Any

import keras
import tensorflow as tf

from petseg.models import convolutions


def call(model: keras.Model, inputs: tf.Tensor) -> list[tf.Tensor]:
    """Computes `model(inputs, training=False)` and its gradients, up to the order of additions.

    Args:
      model: a functional model.
      inputs: its only input.
    """
    if any(_takes_training_from_outer_call(layer) for layer in model.layers):
        return model(inputs, training=False)
    convolution_of = foldable_pairs(model)
    folded = {id(convolution) for convolution in convolution_of.values()}

    def operation(layer: Any) -> Any:
        if id(layer) in folded:
            return lambda x, **_: x  # computed with the batch norm
        if id(layer) in convolution_of:
            return lambda x, **_: _convolve_and_normalize(convolution_of[id(layer)], layer, x)
        return functools.partial(layer, training=False) if getattr(layer, "_call_has_training_arg", False) else layer

    return model._run_through_graph(inputs, operation_fn=operation)


def foldable_pairs(model: keras.Model) -> dict[int, keras.Layer]:
    """Convolutions whose only consumer is a batch norm, by the id of the batch norm."""
    nodes = [node for level in model._nodes_by_depth.values() for node in level if node.operation]
    consumers: dict[int, list[Any]] = {id(output): [None] for output in model.outputs}
    uses: dict[int, int] = {}
    for node in nodes:
        uses[id(node.operation)] = uses.get(id(node.operation), 0) + 1
        for tensor in node.input_tensors:
            consumers.setdefault(id(tensor), []).append(node.operation)
    pairs = {}
    for node in nodes:
        consumer = consumers.get(id(node.outputs[0]), [])
        if (
            type(node.operation) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
            and node.operation.activation is keras.activations.linear
            and node.operation.data_format == "channels_last"
            and len(consumer) == 1
            and isinstance(consumer[0], keras.layers.BatchNormalization)
            and consumer[0].axis in (-1, 3)
            and uses[id(node.operation)] == uses[id(consumer[0])] == 1
        ):
            pairs[id(consumer[0])] = node.operation
    return pairs


def _takes_training_from_outer_call(layer: keras.Layer) -> bool:
    """Whether layers inside a layer, as in SegFormer, have the mode of the outer call, since it has no argument."""
    return not layer._call_has_training_arg and any(layer._flatten_layers(include_self=False))


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
        # Unlike tf.nn.conv2d, it has gradients of dilated convolutions on CPUs.
        outputs = tf.nn.convolution(x, kernel * factor, strides, padding, dilations=dilations)
    return tf.nn.bias_add(outputs, offset)
