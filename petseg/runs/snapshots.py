"""The values of a checkpoint at one moment, which a thread can write while training changes the variables."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.checkpoint import graph_view, save_util  # no public API returns what a checkpoint would hold
from tensorflow.python.trackable.base import OBJECT_GRAPH_PROTO_KEY
from tensorflow.python.training.saving.saveable_object import SaveSpec
from tensorflow.python.training.saving.saveable_object_util import SaveableCompatibilityConverter

from petseg.errors import CheckpointError
from petseg.training.flat_vectors import StoredSlice

ON_FIRST_READ = (tf.VariableAggregation.NONE, tf.VariableAggregation.ONLY_FIRST_REPLICA)


class Snapshots:
    """Reads the values of a checkpoint, each variable once.

    The objects are walked here, once, because that takes as long as writing them. Raises CheckpointError if an object
    writes files of its own.
    """

    def __init__(self, checkpoint: tf.train.Checkpoint):
        found, _, savers, graph = save_util.serialize_graph_view(graph_view.ObjectGraphView(checkpoint))
        if savers:
            raise CheckpointError(
                f"checkpoints: must hold tensors only, but have savers: {', '.join(map(str, savers))}"
            )
        self._graph = graph.SerializeToString()
        self._reads: dict[int, Callable[[], list[tf.Tensor]]] = {}
        # Names of the tensors of each object, and its key in `reads`; of slices, also the slice.
        self._parts: list[tuple[list[str], int, StoredSlice | None]] = []
        for trackable, tensors in found.items():
            part = trackable if isinstance(trackable, StoredSlice) else None
            source = part.vector if part else trackable
            self._parts.append((list(tensors), id(source), part))
            if id(source) not in self._reads:
                self._reads[id(source)] = _reader(source)

    def take(self) -> Callable[[str], None]:
        """Reads the values now; returns a function that writes them to a path at any later time, in any thread."""
        with tf.device("cpu:0"):
            values = {key: read() for key, read in self._reads.items()}
        return lambda path: self._write(path, values)

    def _write(self, path: str, values: dict[int, list[tf.Tensor]]) -> None:
        with tf.device("cpu:0"):
            tensors: dict[str, Any] = {OBJECT_GRAPH_PROTO_KEY: tf.constant(self._graph)}
            # Slices of arrays: each slice of a tensor would be a TensorFlow operation, of a quarter of a millisecond.
            vectors = {key: values[key][0].numpy() for key in {key for _, key, part in self._parts if part}}
            for names, key, part in self._parts:
                stored = [part.of(vectors[key])] if part else values[key]
                tensors |= zip(names, stored, strict=True)
            names = sorted(tensors)
            tf.raw_ops.SaveV2(
                prefix=path,
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=[tensors[name] for name in names],
            )


def _reader(source: Any) -> Callable[[], list[tf.Tensor]]:
    """A function that reads the tensors that a checkpoint stores of an object.

    On a CPU, a tensor read shares the memory of its variable, and TensorFlow copies that before it changes it. Raw
    operations: the methods of variables take ten times as long.
    """
    variable = source.obj if isinstance(source, SaveableCompatibilityConverter) else source
    variable = variable.value if isinstance(variable, keras.Variable) else variable
    if not isinstance(variable, tf.Variable) or _is_reduced(variable):
        return lambda: [_tensor(each) for each in source._serialize_to_tensors().values()]
    first = getattr(variable, "values", [variable])[0]  # of the replicas
    read, identity = tf.raw_ops.ReadVariableOp, tf.raw_ops.Identity  # the latter copies from a GPU to the host
    return lambda: [identity(input=read(resource=first.handle, dtype=first.dtype))]


def _is_reduced(variable: tf.Variable) -> bool:
    """Whether a variable's value is the sum or mean over the replicas."""
    on_read = variable.synchronization == tf.VariableSynchronization.ON_READ
    return on_read and variable.aggregation not in ON_FIRST_READ


def _tensor(stored: Any) -> tf.Tensor:
    return tf.identity(stored.tensor if isinstance(stored, SaveSpec) else stored)
