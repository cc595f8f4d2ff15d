"""The memory of a graph, counted from its shapes."""

import math

import pytest
import tensorflow as tf

from petseg.training import graph_memory

MEBIBYTE = 2**20


def peak(function, shape=(512, 512), **options):  # 1 MiB
    spec = tf.TensorSpec(shape, tf.float32)
    graph = tf.function(function, autograph=False, **options).get_concrete_function(spec).graph
    return graph_memory.peak_bytes(graph) / MEBIBYTE


def chain(x):
    for _ in range(5):
        x = tf.sin(x)
    return x


def gradient(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(chain(x))
    return tape.gradient(loss, x)


def test_tensors_count_until_they_were_read_for_the_last_time():
    assert peak(chain) == 2
    assert peak(lambda x: chain(x) + x) == 3
    assert peak(lambda x: [tf.sin(x), tf.cos(x), x]) == 3


def test_a_backward_pass_needs_what_the_forward_pass_made():
    assert peak(gradient) == pytest.approx(8, abs=1)  # six of the chain; a cosine and two gradients at its end
    assert peak(gradient, (1024, 512)) == pytest.approx(2 * peak(gradient), rel=1e-4)


def test_views_variables_and_what_nothing_reads_take_no_memory():
    variable = tf.Variable(tf.zeros([512, 512]))
    assert peak(lambda x: tf.reshape(tf.identity(x), [-1])) == 1
    assert peak(lambda x: x + variable) == 2
    assert peak(lambda x: [chain(x), tf.cos(chain(x))][0]) == 2


def test_unknown_shapes_count_as_what_they_are_computed_from():
    assert 2 <= peak(lambda x: tf.sin(tf.boolean_mask(x, x[:, 0] > 0))) < 4
    assert math.isnan(peak(chain, (None, 512)))
