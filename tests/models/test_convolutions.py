"""Cheaper gradients are Keras's own, but for rounding."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg.models import encoders, folded_norms
from petseg.models.layers import Conv2D, InferenceMode
from petseg.runtime import strategies


def outputs_and_gradients(call, x, weights):
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = tf.nest.flatten(call(x))
        loss = tf.add_n([tf.reduce_sum(tf.sin(tf.cast(output, tf.float32))) for output in outputs])
    return outputs, tape.gradient(loss, [x, *weights])


def assert_close(found, expected, tolerance):
    for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * max(1, np.abs(other).max()))


@pytest.mark.parametrize(("size", "filters"), [(1, 6), (3, 6), (3, 2), (5, 2)])  # the last two are narrow
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize("use_bias", [False, True])
def test_convolution_values_and_gradients_equal_keras(size, filters, precision, use_bias):
    options = {"padding": "same", "use_bias": use_bias, "dtype": precision}
    theirs, ours = keras.layers.Conv2D(filters, size, **options), Conv2D(filters, size, **options)
    x = tf.random.stateless_normal([2, 6, 9, 8], seed=[0, 0])
    for layer in (theirs, ours):
        layer.build(x.shape)
    ours.set_weights(theirs.get_weights())
    both = [
        outputs_and_gradients(call, x, [weight.value for weight in layer.trainable_weights])
        for layer, call in ((ours, lambda x: ours(x, training=True)), (theirs, theirs))
    ]
    assert_close(*both, 1e-5 if precision == "float32" else 4e-3)
    np.testing.assert_array_equal(ours(x, training=False), theirs(x))


def randomised(model):
    """A model whose batch norms do something, each other things."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


@pytest.mark.parametrize("name", ["tiny", "mobilenet_v2"])
def test_folded_batch_norms_of_an_encoder_change_nothing(name):
    encoder = randomised(encoders.build_encoder(name, image_size=(32, 64), alpha=0.35))
    images = tf.random.stateless_uniform([2, 32, 64, 3], [0, 0])
    weights = [weight.value for weight in encoder.trainable_weights]
    statistics = [weight.numpy() for weight in encoder.non_trainable_weights]
    expected = outputs_and_gradients(lambda x: encoder(x, training=False), images, weights)
    found = outputs_and_gradients(lambda x: folded_norms.call(encoder, x), images, weights)
    assert_close(found, expected, 2e-4)
    assert len(folded_norms.foldable_pairs(encoder)) == (5 if name == "tiny" else 50)
    for weight, before in zip(encoder.non_trainable_weights, statistics, strict=True):
        np.testing.assert_array_equal(weight, before)


def assert_folding_changes_nothing(model):
    x = tf.random.stateless_normal([2, *model.input_shape[1:]], [0, 0])
    weights = [weight.value for weight in model.trainable_weights]
    assert_close(
        outputs_and_gradients(lambda x: folded_norms.call(model, x), x, weights),
        outputs_and_gradients(lambda x: model(x, training=False), x, weights),
        1e-4,
    )


@pytest.mark.parametrize(
    "layer", [keras.layers.Conv2D(6, 3, dilation_rate=2), keras.layers.DepthwiseConv2D(5, dilation_rate=2)]
)
def test_batch_norms_fold_into_dilated_convolutions(layer):
    images = keras.Input([16, 16, 4])
    model = randomised(keras.Model(images, keras.layers.BatchNormalization()(layer(images))))
    assert len(folded_norms.foldable_pairs(model)) == 1
    assert_folding_changes_nothing(model)


@pytest.mark.parametrize(("kind", "is_cheaper"), [("CPU", True), ("GPU", False)])
def test_only_cpus_have_the_cheaper_gradients(monkeypatch, kind, is_cheaper):
    monkeypatch.setattr(strategies, "computing_kind", lambda: kind)
    folded, call = [], folded_norms.call
    monkeypatch.setattr(folded_norms, "call", lambda *arguments: folded.append(True) or call(*arguments))
    encoder = InferenceMode(encoders.build_encoder("tiny", image_size=(32, 32)), trainable=True)
    layer = Conv2D(4, 3, padding="same")
    layer.build([None, 2, 2, 24])

    @tf.function(autograph=False)
    def compute(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(encoder(x, training=True)[2], training=True))
        return tape.gradient(loss, [weight.value for weight in encoder.trainable_weights])

    graph = compute.get_concrete_function(tf.TensorSpec([2, 32, 32, 3])).graph
    kinds = [operation.type for operation in graph.get_operations()]
    assert bool(folded) == is_cheaper
    assert kinds.count("Conv2DBackpropInput") == 3 + (not is_cheaper)  # the encoder has three


def test_a_convolution_that_something_else_reads_or_that_is_an_output_is_left_alone():
    images = keras.Input([8, 8, 3])
    first = keras.layers.Conv2D(4, 3, activation="relu")(images)
    second = keras.layers.Conv2D(4, 1)(keras.layers.BatchNormalization()(first))
    third = keras.layers.Conv2D(4, 1)(keras.layers.BatchNormalization()(second))
    model = randomised(keras.Model(images, [second, keras.layers.BatchNormalization()(third)]))
    assert len(folded_norms.foldable_pairs(model)) == 1
    assert_folding_changes_nothing(model)


class DropsOut(keras.layers.Layer):
    """A layer whose call has no `training`, as some of keras-hub, and one inside that takes it from the outer call."""

    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, x):
        return self.dropout(x)


@pytest.mark.parametrize("has_norm", [False, True])
def test_dropout_inside_a_layer_of_an_encoder_is_off_in_training(has_norm):
    images = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(4, 3)(images)
    x = keras.layers.BatchNormalization()(x) if has_norm else x
    encoder = keras.Model(images, DropsOut()(x))
    pixels = tf.random.stateless_uniform([2, 8, 8, 3], [0, 0])
    trained = InferenceMode(encoder, trainable=True)
    np.testing.assert_allclose(trained(pixels, training=True), encoder(pixels, training=False), rtol=1e-5, atol=1e-6)


def test_a_frozen_encoder_gives_the_same_bits_in_training_as_in_inference():
    encoder = randomised(encoders.build_encoder("tiny", image_size=(32, 32)))
    images = tf.random.stateless_uniform([2, 32, 32, 3], [0, 0])
    frozen = InferenceMode(encoder, trainable=False)
    for one, other in zip(frozen(images, training=True), encoder(images, training=False), strict=True):
        np.testing.assert_array_equal(one, other)
