"""Floating-point operations and memory traffic of a training step, counted from its graph."""

import math
from collections.abc import Iterable

import keras
import tensorflow as tf

# By operation type: the index of the input that holds the filter or its shape, and of the input that has the size of
# the convolution's output; None: the operation's output has it.
CONVOLUTIONS = {
    "Conv2D": (1, None),
    "DepthwiseConv2dNative": (1, None),
    "Conv2DBackpropInput": (1, 2),
    "Conv2DBackpropFilter": (1, 2),
    "DepthwiseConv2dNativeBackpropInput": (1, 2),
    "DepthwiseConv2dNativeBackpropFilter": (1, 2),
}


def flops_and_bytes(model: keras.Model, batch_size: int) -> tuple[float, float]:
    """Counts floating-point operations and bytes of a step's forward and backward pass, per image.

    Operations are those of convolutions and matrix products; a multiplication with its addition counts as two. Bytes
    are those of all inputs and outputs of operations, as if no two were fused and nothing stayed in a cache.

    Args:
      model: float32 images -> float32 logits.
      batch_size: number of images in the graph that is counted.
    """

    @tf.function
    def step(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=True))
        return [loss, *tape.gradient(loss, [weight.value for weight in model.trainable_variables])]

    spec = tf.TensorSpec([batch_size, *model.input_shape[1:]], tf.float32)
    graph = step.get_concrete_function(spec).graph
    return flops(graph) / batch_size, sum(map(_bytes, _needed(graph))) / batch_size


def flops(graph: tf.Graph) -> float:
    """Floating-point operations of the convolutions and matrix products that a graph's outputs depend on."""
    return sum(map(_flops, _needed(graph)))


def _needed(graph: tf.Graph) -> Iterable[tf.Operation]:
    """Operations that the outputs of a graph depend on; the others never run."""
    seen: set[str] = set()
    waiting = [output.op for output in graph.outputs]
    while waiting:
        operation = waiting.pop()
        if operation.name not in seen:
            seen.add(operation.name)
            waiting += [tensor.op for tensor in operation.inputs]
            yield operation


def _flops(operation: tf.Operation) -> float:
    if operation.type == "MatMul":
        inner = operation.inputs[0].shape[0 if operation.get_attr("transpose_a") else 1]
        return 2.0 * inner * math.prod(operation.outputs[0].shape)
    if operation.type not in CONVOLUTIONS:
        return 0.0
    filter_input, output_input = CONVOLUTIONS[operation.type]
    output = operation.outputs[0] if output_input is None else operation.inputs[output_input]
    if operation.type.endswith("BackpropFilter"):
        weights = math.prod(operation.outputs[0].shape)
    else:
        weights = math.prod(operation.inputs[filter_input].shape)
    return 2.0 * weights * math.prod(output.shape[:3])


def _bytes(operation: tf.Operation) -> float:
    if operation.type in ("Const", "Identity", "ReadVariableOp", "Placeholder", "Reshape"):
        return 0.0
    return sum(
        math.prod(tensor.shape) * tensor.dtype.size
        for tensor in [*operation.inputs, *operation.outputs]
        if tensor.shape.is_fully_defined() and tensor.dtype.is_floating
    )
