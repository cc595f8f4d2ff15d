"""Floating-point operations of a graph, counted from the shapes of its convolutions and matrix products."""

import math
from collections.abc import Iterator

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
# By operation type: the attributes that name the functions it calls.
CALLS = {
    "If": ("then_branch", "else_branch"),
    "StatelessIf": ("then_branch", "else_branch"),
    "While": ("body",),
    "StatelessWhile": ("body",),
    "PartitionedCall": ("f",),
    "StatefulPartitionedCall": ("f",),
}


def flops(graph: tf.Graph) -> float:
    """Floating-point operations of a graph and of the functions it calls; the body of a loop counts once.

    A multiplication with its addition counts as two. NaN if the shape of an operation is not known.
    """
    return sum(map(_flops, needed(graph)))


def needed(graph: tf.Graph) -> Iterator[tf.Operation]:
    """The operations of a graph, and of the functions it calls, on which its results depend; the others never run."""
    waiting = [output.op for output in graph.outputs] + [*graph.control_outputs]
    seen: set[str] = set()
    while waiting:
        operation = waiting.pop()
        if operation.name in seen:
            continue
        seen.add(operation.name)
        waiting += [tensor.op for tensor in operation.inputs] + operation.control_inputs
        yield operation
        for attribute in CALLS.get(operation.type, ()):
            called = graph._get_function(operation.get_attr(attribute).name)
            if called is not None:  # as it is for functions of TensorFlow's runtime
                yield from needed(called.graph)


def _flops(operation: tf.Operation) -> float:
    matrices = operation.type in ("MatMul", "BatchMatMulV2")
    if not matrices and operation.type not in CONVOLUTIONS:
        return 0.0
    tensors = [*operation.inputs, *operation.outputs]
    if not all(tensor.shape.is_fully_defined() for tensor in tensors):
        return math.nan
    if matrices:
        transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
        inner = operation.inputs[0].shape[-2 if transposed else -1]
        return 2.0 * inner * math.prod(operation.outputs[0].shape)
    filter_input, output_input = CONVOLUTIONS[operation.type]
    output = operation.outputs[0] if output_input is None else operation.inputs[output_input]
    if operation.type.endswith("BackpropFilter"):
        weights = math.prod(operation.outputs[0].shape)
    else:
        weights = math.prod(operation.inputs[filter_input].shape)
    return 2.0 * weights * math.prod(output.shape[:3])
