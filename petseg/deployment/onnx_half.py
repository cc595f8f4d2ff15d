"""ONNX files with float16 weights and float32 arithmetic, half the size."""

import math
import os
from pathlib import Path

import numpy as np

from petseg.errors import ExportError
from petseg.files import write_bytes

SMALLEST = 256  # elements of a tensor worth converting; biases and batch norms stay float32
SUFFIX = "/half"


def half_precision(path_in: str | os.PathLike[str], path_out: str | os.PathLike[str]) -> None:
    """Copies an ONNX file, storing large float32 weights as float16, each followed by a cast to float32.

    Runtimes fold the casts when they load the file. Raises ExportError if a weight is out of the range of float16.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(os.fspath(path_in))
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < SMALLEST:
            continue
        with np.errstate(over="ignore"):  # an error below
            values = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(values).all():
            raise ExportError(f"{path_in}: {tensor.name} holds weights out of the range of float16")
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values, name + SUFFIX))
        casts.append(helper.make_node("Cast", [name + SUFFIX], [name], name + SUFFIX, to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    write_bytes(Path(path_out), model.SerializeToString())
