"""Memory of a graph, estimated from the shapes of its tensors."""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.training import flops

VIEWS = {
    "ExpandDims",
    "Identity",
    "PreventGradient",
    "Reshape",
    "Squeeze",
    "StopGradient",
}  # share their input's memory
OUTSIDE = {"Const", "ReadVariableOp"}  # have memory that stays between calls


def peak_bytes(graph: tf.Graph) -> float:
    """The most bytes that the tensors of a graph take at one time, without its variables.

    Operations count in the order of their creation, and tensors until their last reader is done. What kernels allocate
    for themselves is not known, and neither is what the functions that it calls keep inside. A tensor of unknown shape
    counts as much as the largest that it is computed from. NaN if the shape of an input is not known.
    """
    needed = {operation.name for operation in flops.needed(graph)}
    operations = [operation for operation in graph.get_operations() if operation.name in needed]
    owners: dict[Any, Any] = {}  # by tensor: the tensor whose memory it is
    first: dict[Any, int] = {}  # by owner: the operation that makes it
    last: dict[Any, int] = {}  # by owner: the last operation that reads it
    sizes: dict[Any, float] = {}  # by tensor: bytes
    for index, operation in enumerate(operations):
        for tensor in operation.inputs:
            last[owners[tensor.ref()]] = index
        largest = np.max([sizes[tensor.ref()] for tensor in operation.inputs] or math.nan)
        for tensor in operation.outputs:
            sizes[tensor.ref()] = _bytes(tensor, largest)
            owner = owners[operation.inputs[0].ref()] if operation.type in VIEWS else tensor.ref()
            owners[tensor.ref()] = owner
            first.setdefault(owner, index)
            last[owner] = index
    last |= {owners[tensor.ref()]: len(operations) for tensor in graph.outputs}
    changes = np.zeros(len(operations) + 2)
    for owner, index in first.items():
        changes[index] += (size := sizes[owner])
        changes[last[owner] + 1] -= size
    return float(changes.cumsum().max())


def _bytes(tensor: tf.Tensor, if_unknown: float) -> float:
    if tensor.op.type in OUTSIDE or tensor.dtype in (tf.resource, tf.variant):
        return 0.0
    return math.prod(tensor.shape) * tensor.dtype.size if tensor.shape.is_fully_defined() else if_unknown
