"""TensorFlow functions as ONNX models, with what tf2onnx lacks."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.errors import ExportError

OPSET = 18
# Makes reshapes with two unknown sizes wrong, such as those of keys in SegFormer's attention.
WRONG_OPTIMIZER = "reshape_optimizer"


def convert(function: Any) -> Any:
    """The `onnx.ModelProto` of a `tf.function` of one tensor to a dictionary of tensors, which name input and outputs.

    Raises ExportError if it has operations that ONNX lacks.
    """
    import onnx.defs
    from tf2onnx import optimizer, tf_loader, tfonnx

    with _inlined_xla():
        concrete = function.get_concrete_function()
    (image,) = tf.nest.flatten(concrete.structured_input_signature)
    source, outputs = concrete.inputs[0].name, {each.name: key for key, each in concrete.structured_outputs.items()}
    optimizers = {name: each for name, each in optimizer._optimizers.items() if name != WRONG_OPTIMIZER}
    with _silent("tf2onnx"), tf.device("/CPU:0"):  # it logs tracebacks of optimizers that fail
        # Not tf2onnx.convert.from_function, to which captured constants are inputs.
        frozen = tf_loader.from_function(concrete, [source], list(outputs))
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(frozen, name="")
            made = tfonnx.process_tf_graph(
                graph,
                opset=OPSET,
                input_names=[source],
                output_names=list(outputs),
                tensors_to_rename={source: image.name, **outputs},
                custom_op_handlers={"Erfc": (_erfc, [])},
                custom_rewriter=[_scalars_to_vectors],
            )
            model = optimizer.optimize_graph(made, optimizers=optimizers).make_model("petseg")
    unknown = {node.op_type for node in model.graph.node if not onnx.defs.has(node.op_type, node.domain)}
    if unknown:
        raise ExportError(f"the network has operations that ONNX lacks: {', '.join(sorted(unknown))}")
    return model


@contextlib.contextmanager
def _inlined_xla() -> Iterator[None]:
    """Context in which Keras's grouped convolutions, as of ConvNeXt, are traced as such, not as calls of XLA."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _erfc(graph: Any, node: Any, name: str, _: Any) -> None:
    """1 - erf(x), of exact GELUs."""
    one = graph.make_const(f"{name}_one", np.float32(1)).output[0]
    erf = graph.make_node("Erf", list(node.input)).output[0]
    outputs, shapes, dtypes = node.output, node.output_shapes, node.output_dtypes
    graph.remove_node(name)
    graph.make_node("Sub", [one, erf], outputs=outputs, shapes=shapes, dtypes=dtypes)


def _scalars_to_vectors(graph: Any, operations: Any) -> Any:
    """Scalars that are added to maps become vectors: tf2onnx fails to move transpositions over scalars."""
    for operation in operations:
        if operation.type == "AddV2" and len(operation.output_shapes[0] or ()) > 0:
            for index, (name, source) in enumerate(zip(list(operation.input), operation.inputs, strict=True)):
                if source.is_const() and graph.get_shape(name) == []:
                    values = source.get_tensor_value(as_list=False).reshape(1)
                    vector = graph.make_const(f"{operation.name}_vector_{index}", values).output[0]
                    graph.replace_input(operation, name, vector, index)
    return graph.get_nodes()
