"""Functional models as graphs: who reads a tensor, and copies with changed layers."""

import itertools
from collections.abc import Callable
from typing import Any

import keras


def readers_of(network: keras.Model) -> dict[int, list[Any]]:
    """The operations that read each tensor of a functional model, by the tensor's id; one for each use.

    Keras's public `operation.input` is that of an operation's first use, which may be in another model.
    """
    readers: dict[int, list[Any]] = {}
    for node in itertools.chain.from_iterable(network._nodes_by_depth.values()):
        for tensor in node.input_tensors:
            readers.setdefault(id(tensor), []).append(node.operation)
    return readers


def copied(
    network: keras.Model, changes: Callable[[Any], dict[str, Any]], skipped: tuple[type, ...] = ()
) -> keras.Model:
    """A copy of a functional model and its weights, with changes of layers' configs and without some classes."""

    def clone(layer: Any) -> Any:
        return type(layer).from_config(layer.get_config() | changes(layer))

    def call(layer: Any, x: Any, *more: Any, **options: Any) -> Any:
        return x if isinstance(layer, skipped) else layer(x, *more, **options)

    copy = keras.models.clone_model(network, clone_function=clone, call_function=call)
    for layer in filter(lambda layer: layer.weights, copy.layers):
        layer.set_weights(network.get_layer(layer.name).get_weights())
    return copy
