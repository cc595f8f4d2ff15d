"""The traced graphs of a training step and of an evaluation: how many operations, and what a GPU would make of them."""

import math

import pytest
import tensorflow as tf
from conftest import random_examples
from tensorflow.python.framework import kernels, op_def_registry

from petseg.classes import PETS
from petseg.config import Config
from petseg.data import input_pipeline
from petseg.data.bad_example_log import BadExampleLog
from petseg.models import convolutions
from petseg.runs import building
from petseg.training.stop_requests import StopRequests

# What costs a device nothing: no computation, at most another view of the same memory.
TRIVIAL = {"Const", "Identity", "IdentityN", "NoOp", "Placeholder", "ReadVariableOp", "Reshape", "StridedSlice"}
MOST_OPERATIONS = 2500
# As many as a shape or a position has, which TensorFlow computes on the host in any case.
FEW_ELEMENTS = 8
ON_HOST = {
    "IteratorGetNext": "batches arrive from the input pipeline",
    "Const": "what a kernel reads on the host is kept there",
}
# Raise an error on GPUs with --deterministic.
NOT_DETERMINISTIC = {
    "AdjustContrast", "AdjustContrastv2", "CropAndResizeGradBoxes", "CropAndResizeGradImage", "FusedBatchNormGradV3",
    "ResizeNearestNeighborGrad", "SparseTensorDenseMatMul",
}  # fmt: skip
HALVES = (tf.float16, tf.bfloat16)
# Losses, norms, statistics of batch norms, and updates.
IN_FLOAT32 = {
    "SparseSoftmaxCrossEntropyWithLogits", "Softmax", "LogSoftmax", "Log", "Exp", "Expm1", "L2Loss", "Mean", "Rsqrt",
    "Sqrt", "SquaredDifference", "AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp",
}  # fmt: skip
FLAGS = {"workdir": "x", "encoder_weights": "none", "encoder": "tiny", "image_size": 32, "batch_size": 4}
CLASS_WEIGHTS = (1.0, 2.0, 3.0)


@pytest.fixture(autouse=True)
def graphs_for_gpus(monkeypatch):
    monkeypatch.setattr(convolutions, "faster_here", lambda: False)


def operations(graph):
    """All operations of a graph, with those of the functions that it calls."""
    for operation in graph.get_operations():
        yield operation
        for attribute in operation.node_def.attr.values():
            if attribute.HasField("func"):
                yield from operations(graph._get_function(attribute.func.name).graph)


def graph_of_loop(config):
    strategy, examples = tf.distribute.get_strategy(), random_examples(8, config.data.size[0])
    model = building.build_model(config, PETS, "none")
    _, focus = building.focused_crops(config, examples)
    trainer = building.build_trainer(config, strategy, model, CLASS_WEIGHTS, 1000, StopRequests(), focus)
    batches = building.training_batches(config, strategy, examples, steps=range(1), bad_examples=BadExampleLog())
    return trainer.loop.graph(batches)


def graph_of_evaluation(config):
    strategy, examples = tf.distribute.get_strategy(), random_examples(8, config.data.size[0])
    model = building.build_model(config, PETS, "none")
    evaluator = building.build_evaluator(
        config, strategy, model, examples, CLASS_WEIGHTS, StopRequests(), flip_tta=True, details=True
    )
    batches, _ = input_pipeline.distributed_evaluation_batches(strategy, examples, batch_size=4)
    return evaluator.loop.get_concrete_function(iter(batches), tf.constant(1, tf.int64)).graph


def kernels_of_gpu(operation):
    """Registered kernels for GPUs, or for all devices, that take an operation's types."""
    for kernel in kernels.get_registered_kernels_for_op(operation.type).kernel:
        types = {c.name: list(c.allowed_values.list.type) for c in kernel.constraint}
        attributes = operation.node_def.attr
        if kernel.device_type in ("GPU", "DEFAULT") and all(attributes[key].type in of for key, of in types.items()):
            yield kernel


def tensors_on_host(operation, kernel):
    """Operands of a kernel that lie in host memory."""
    definition, found = op_def_registry.get(operation.type), []
    for arguments, tensors in ((definition.input_arg, operation.inputs), (definition.output_arg, operation.outputs)):
        rest = list(tensors)
        for argument in arguments:
            attributes = operation.node_def.attr
            count = 1
            if argument.number_attr:
                count = attributes[argument.number_attr].i
            elif argument.type_list_attr:
                count = len(attributes[argument.type_list_attr].list.type)
            part, rest = rest[:count], rest[count:]
            if argument.name in kernel.host_memory_arg:
                found += part
    return found


def is_small(tensor):
    return (
        tensor.dtype in (tf.resource, tf.variant)
        or tensor.op.type == "Const"
        or (tensor.shape.is_fully_defined() and math.prod(tensor.shape) <= FEW_ELEMENTS)
    )


def faults(graph):
    """What a GPU could not compute, or only through the memory of the host."""
    found = set()
    for operation in operations(graph):
        if "cpu" in operation.device.lower() or operation.type in ON_HOST:
            continue
        if operation.type in NOT_DETERMINISTIC:
            found.add(f"{operation.type}: not deterministic")
        fitting = list(kernels_of_gpu(operation))
        types = ", ".join(sorted({tensor.dtype.name for tensor in (*operation.inputs, *operation.outputs)}))
        if not fitting:
            found.add(f"{operation.type} ({types}): no kernel")
        elif not any(all(map(is_small, tensors_on_host(operation, kernel))) for kernel in fitting):
            found.add(f"{operation.type} ({types}): on the host, in {operation.name}")
    return sorted(found)


@pytest.mark.skipif(not tf.test.is_built_with_cuda(), reason="this TensorFlow has no kernels for GPUs")
@pytest.mark.parametrize(
    "flags",
    [
        {"loss": "cross_entropy_dice", "augment": "strong", "optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 1,
         "ema_decay": 0.9, "boundary_weight": 1.0, "micro_batches": 2},
        pytest.param({"loss": "focal", "label_smoothing": 0.1, "precision": "mixed_float16", "vertical_flip": 0.5,
         "quarter_turns": 1, "crop_area": 0.5, "crop_area_max": 2, "crop_focus": 0.3, "decoder": "deeplab_v3plus"},
         marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_gpu_computes_all_of_a_step(flags):
    assert faults(graph_of_loop(Config.of(**FLAGS, **flags))) == []


@pytest.mark.skipif(not tf.test.is_built_with_cuda(), reason="this TensorFlow has no kernels for GPUs")
def test_a_gpu_computes_all_of_an_evaluation():
    assert faults(graph_of_evaluation(Config.of(**FLAGS, loss="cross_entropy_dice", boundary_weight=1.0))) == []


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_losses_norms_statistics_and_updates_are_float32_in_mixed_precision(precision):
    flags = {"loss": "cross_entropy_dice", "optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 1, "ema_decay": 0.9}
    found = list(operations(graph_of_loop(Config.of(**FLAGS, **flags, precision=precision))))
    halves = {operation.type for operation in found if any(t.dtype in HALVES for t in operation.inputs)}
    assert "Conv2D" in halves
    assert not halves & IN_FLOAT32
    assert {operation.type for operation in found} >= {"Softmax", "L2Loss", "Rsqrt", "AssignSubVariableOp"}


@pytest.mark.slow
def test_a_step_of_the_preset_best_has_few_operations():
    """Above 8,000, with one update for each of 174 weights, launching them took longer than computing them."""
    config = Config.preset("best").changed(
        data={"image_size": "32"}, model={"encoder_weights": "none", "inner_size": "64"}, runtime={"workdir": "x"}
    )
    counted = [operation for operation in operations(graph_of_loop(config)) if operation.type not in TRIVIAL]
    assert 1500 < len(counted) <= MOST_OPERATIONS
