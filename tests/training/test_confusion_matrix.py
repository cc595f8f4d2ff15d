import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from hypothesis import given, settings, strategies as st
from tensorflow.python.framework import kernels

from petseg.evaluation import metrics
from petseg.training import confusion_matrix


@pytest.fixture(params=["any order", "op determinism"], scope="module")
def mode(request):
    """Both ways to count; TensorFlow cannot switch its own determinism off again."""
    with pytest.MonkeyPatch.context() as patch:
        deterministic = request.param == "op determinism"
        patch.setattr(confusion_matrix.tf_config, "is_op_determinism_enabled", lambda: deterministic)
        yield request.param


def random_case(seed, classes=3):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, classes, (2, 3, 8, 8))
    return labels.astype(np.uint8), predictions.astype(np.int32), rng.random((3, 8, 8)) < 0.8


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_confusion_matrices_count_the_valid_pixels_of_each_image_by_true_and_predicted_class(mode, seed):
    labels, predictions, valid = random_case(seed)
    expected = np.zeros((3, 3, 3), np.int64)
    np.add.at(expected, (np.nonzero(valid)[0], labels[valid], predictions[valid]), 1)
    matrices = confusion_matrix.confusion_matrices(labels, predictions, valid, 3).numpy()
    assert matrices.dtype == np.int64
    np.testing.assert_array_equal(matrices, expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_confusion_matrices_are_those_of_scikit_learn(classes):
    labels, predictions, valid = random_case(5, classes)
    matrices = confusion_matrix.confusion_matrices(labels, predictions, valid, 3).numpy()
    for i in range(3):
        expected = sklearn.metrics.confusion_matrix(labels[i][valid[i]], predictions[i][valid[i]], labels=[0, 1, 2])
        np.testing.assert_array_equal(matrices[i], expected)


def test_pixels_of_no_class_and_images_without_any_valid_pixel_add_nothing(mode):
    labels, predictions, valid = random_case(2)
    labels[~valid] = 255
    valid[1] = False
    matrices = confusion_matrix.confusion_matrices(labels, predictions, valid, 3).numpy()
    assert matrices.sum() == valid.sum()
    assert not matrices[1].any()


def on_the_host(function, *shapes_and_types):
    """The operations of a function that would leave a GPU, or take whole images from it: no kernel, or host memory."""
    arguments = [tf.TensorSpec(shape, dtype) for shape, dtype in shapes_and_types]
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    if not any(kernel.device_type == "GPU" for kernel in kernels.get_registered_kernels_for_op("MatMul").kernel):
        pytest.skip("this TensorFlow is built without kernels for GPUs")
    found = set()
    for op in graph.get_operations():
        large = [tensor for tensor in (*op.inputs, *op.outputs) if tensor.shape.rank is None or tensor.shape.rank > 2]
        if not large or op.type in ("Placeholder", "Const", "Identity"):
            continue
        fitting = [
            kernel
            for kernel in kernels.get_registered_kernels_for_op(op.type).kernel
            if kernel.device_type in ("GPU", "DEFAULT")
            and all(op.get_attr(c.name).as_datatype_enum in c.allowed_values.list.type for c in kernel.constraint)
        ]
        data = {"input", "x", "y", "z", "values", "tensor", "output", "value", "t", "e", "data"}
        if not fitting or any(data & set(kernel.host_memory_arg) for kernel in fitting):
            found.add(f"{op.type} {[tensor.dtype.name for tensor in large]}")
    return found


def test_counting_stays_on_a_gpu(mode):
    ids = ([4, 16, 16], tf.uint8), ([4, 16, 16], tf.int32), ([4, 16, 16], tf.bool)
    assert on_the_host(lambda *x: tf.reshape(tf.cast(tf.cast(x[0], tf.int32) + x[1], tf.int64), [-1]), *ids)
    assert not on_the_host(lambda *x: confusion_matrix.confusion_matrices(*x, 3), *ids)
    graph = tf.function(lambda *x: confusion_matrix.confusion_matrices(*x, 3), autograph=False)
    operations = graph.get_concrete_function(*(tf.TensorSpec(*each) for each in ids)).graph.get_operations()
    (counting,) = [op for op in operations if op.type in ("DenseBincount", "UnsortedSegmentSum")]
    assert counting.get_attr("T") == tf.int32
    assert counting.type == ("UnsortedSegmentSum" if mode == "op determinism" else "DenseBincount")


def test_outlines_stay_on_a_gpu():
    ids = ([4, 16, 16], tf.uint8), ([4, 16, 16], tf.int32), ([4, 16, 16], tf.bool)
    assert not on_the_host(lambda *x: metrics.boundary_counts(*x, 3, 2), *ids)
