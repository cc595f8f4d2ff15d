"""ONNX files of half the size: weights are stored in half precision, the arithmetic stays what it was."""

import math
import os
from pathlib import Path

import numpy as np

from petseg.errors import ExportError
from petseg.files import write_bytes

SMALLEST = 256  # numbers in a tensor that is worth it; what has one number for a channel stays as it is
SUFFIX = "/half"


def half_precision(path_in: str | os.PathLike[str], path_out: str | os.PathLike[str]) -> None:
    """Writes a copy of an ONNX file in which large tensors of float32 weights are stored as float16.

    Behind each stands a cast to float32, which a runtime does once, when it loads the file.

    Raises:
      ExportError: if a weight is larger than float16 can hold.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(os.fspath(path_in))
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < SMALLEST:
            continue
        with np.errstate(over="ignore"):  # told below
            values = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(values).all():
            raise ExportError(f"{path_in}: {tensor.name} holds numbers that half precision cannot hold")
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values, name + SUFFIX))
        casts.append(helper.make_node("Cast", [name + SUFFIX], [name], name + SUFFIX, to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    write_bytes(Path(path_out), model.SerializeToString())
