"""Batch-norm folding: a trained encoder's pass with batch norms folded into the preceding convolutions.

In inference mode a batch norm scales and shifts channels. Scaling the kernel touches a few thousand numbers; scaling
the feature map costs three passes over millions in the backward pass, half of the encoder's cost there.
"""

import collections
import functools
import inspect
from typing import Any

import keras
import tensorflow as tf

from petseg.models import convolutions
from petseg.models.functional_models import readers_of


def call(model: keras.Model, inputs: tf.Tensor) -> list[tf.Tensor]:
    """`model(inputs, training=False)` of a functional model, and its gradients, up to the order of additions."""
    if any(_takes_training_from_outer_call(layer) for layer in model.layers):
        return model(inputs, training=False)
    convolution_of = foldable_pairs(model)
    folded = {id(convolution) for convolution in convolution_of.values()}

    def operation(layer: Any) -> Any:
        if id(layer) in folded:
            return lambda x, **_: x  # computed with the batch norm
        if id(layer) in convolution_of:
            return lambda x, **_: _convolve_and_normalize(convolution_of[id(layer)], layer, x)
        return functools.partial(layer, training=False) if _takes_training(layer) else layer

    return model._run_through_graph(inputs, operation_fn=operation)


def foldable_pairs(model: keras.Model) -> dict[int, keras.Layer]:
    """Convolutions whose only reader is a batch norm, by the id of the batch norm; both are used once."""
    readers = readers_of(model)
    uses = collections.Counter(id(reader) for several in readers.values() for reader in several)
    outputs = {id(output) for output in model.outputs}
    pairs = {}
    for layer in model.layers:
        if (
            type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
            and layer.activation is keras.activations.linear
            and layer.data_format == "channels_last"
            and uses[id(layer)] == 1
            and id(layer.output) not in outputs
            and len(several := readers.get(id(layer.output), [])) == 1
            and isinstance(norm := several[0], keras.layers.BatchNormalization)
            and norm.axis in (-1, 3)
            and uses[id(norm)] == 1
        ):
            pairs[id(norm)] = layer
    return pairs


def _takes_training_from_outer_call(layer: keras.Layer) -> bool:
    """Whether layers inside a layer, as in SegFormer, have the mode of the outer call, since it has no argument."""
    return not _takes_training(layer) and any(layer._flatten_layers(include_self=False))


def _takes_training(layer: Any) -> bool:
    return "training" in inspect.signature(layer.call).parameters


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
