import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg.errors import ConfigError
from petseg.models import encoders, unet
from petseg.models.batch_norm_calibration import calibrate_batch_norm
from petseg.models.layers import Conv2DTranspose


def build(size=32, alpha=0.35, train_encoder=False, input_scaling="unit"):
    encoder = encoders.build_encoder("mobilenet_v2", image_size=(size, size), alpha=alpha)
    return unet.build_unet(
        image_size=(size, size),
        num_classes=3,
        encoder=encoder,
        train_encoder=train_encoder,
        input_scaling=input_scaling,
    )


def trainable(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def images(count=4, size=32):
    return tf.constant(np.random.default_rng(0).uniform(0, 255, (count, size, size, 3)).astype(np.float32))


def test_parameter_counts():
    model = build(size=128, alpha=1.0)
    assert model.count_params() == 6_504_227
    assert trainable(model) == 4_660_323


def test_an_encoder_that_is_trained_adds_its_weights_but_not_its_statistics():
    model = build(size=128, alpha=1.0, train_encoder=True)
    statistics = sum(
        int(np.prod(layer.moving_mean.shape)) * 2
        for layer in [*model.layers, *model.get_layer("encoder").model.layers]
        if isinstance(layer, keras.layers.BatchNormalization)
    )
    assert trainable(model) == 6_504_227 - statistics


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize("use_bias", [False, True])
def test_a_convolution_that_leaves_a_gradient_out_is_otherwise_keras_own(precision, use_bias):
    keras.utils.set_random_seed(0)
    options = {"strides": 2, "padding": "same", "use_bias": use_bias, "dtype": precision}
    theirs, ours = keras.layers.Conv2DTranspose(7, 3, **options), Conv2DTranspose(7, 3, 4, **options)
    x = tf.random.stateless_normal([2, 6, 6, 9], seed=[0, 0])
    for layer in (theirs, ours):
        layer.build(x.shape)
    ours.set_weights(theirs.get_weights())
    outputs, of_x, of_weights = [], [], []
    for call, layer in ((theirs, theirs), (lambda x: ours(x, training=True), ours)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs.append(call(x))
            loss = tf.reduce_sum(tf.sin(tf.cast(outputs[-1], tf.float32)))
        gradients = tape.gradient(loss, [x, *(weight.value for weight in layer.trainable_weights)])
        of_x.append(gradients[0])
        of_weights.append(gradients[1:])
    np.testing.assert_array_equal(*outputs)
    for theirs_, ours_ in zip(*of_weights, strict=True):
        np.testing.assert_array_equal(theirs_, ours_)
    rounding = 1e-5 if precision == "float32" else float(np.finfo(np.float16).eps)  # sums of other lengths
    np.testing.assert_allclose(of_x[0][..., :4], of_x[1][..., :4], rtol=rounding, atol=rounding)
    assert np.all(of_x[1][..., 4:] == 0)


@pytest.mark.slow
def test_only_a_frozen_encoder_gets_no_gradients():
    for train_encoder, channels in ((True, [None] * 5), (False, [None, 512, 256, 128, 64])):
        layers = [layer for layer in build(train_encoder=train_encoder).layers if "upsample" in layer.name]
        layers.append(build(train_encoder=train_encoder).get_layer("logits"))
        assert [layer.trained_channels for layer in layers] == channels


@pytest.mark.parametrize(("input_scaling", "low", "high"), [("unit", 0, 1), ("symmetric", -1, 1)])
def test_the_network_scales_bytes_itself(input_scaling, low, high):
    scaled = build(input_scaling=input_scaling).get_layer("scaling")(tf.constant([0.0, 255.0]))
    np.testing.assert_allclose(scaled, [low, high], atol=1e-6)


def test_the_encoder_stays_in_inference_mode_while_the_decoder_trains():
    model = build(train_encoder=True)
    encoder = model.get_layer("encoder").model
    norms = {
        name: [layer for layer in part.layers if isinstance(layer, keras.layers.BatchNormalization)]
        for name, part in (("encoder", encoder), ("decoder", model))
    }
    before = {name: [layer.moving_mean.numpy() for layer in layers] for name, layers in norms.items()}
    model(images(), training=True)
    for layer, old in zip(norms["encoder"], before["encoder"], strict=True):
        np.testing.assert_array_equal(layer.moving_mean.numpy(), old)
    assert len(norms["decoder"]) == 4
    for layer, old in zip(norms["decoder"], before["decoder"], strict=True):
        assert (layer.moving_mean.numpy() != old).any()


def test_an_encoder_that_is_trained_gets_gradients_through_its_batch_norms():
    model = build(train_encoder=True)
    calibrate_batch_norm(model.get_layer("encoder").model, model.get_layer("scaling")(images()))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(images(), training=True) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert len(gradients) == len(model.get_layer("encoder").trainable_variables) + 4 + 2 * 4 + 2
    assert all(np.any(gradient) for gradient in gradients)


def test_the_whole_model_survives_saving(tmp_path):
    model = build()
    model.save(tmp_path / "unet.keras")
    again = keras.models.load_model(tmp_path / "unet.keras")
    np.testing.assert_allclose(again(images()), model(images()), rtol=1e-5, atol=1e-6)
    assert len(again.trainable_variables) == len(model.trainable_variables)


def test_calibration_keeps_the_signal_alive_through_a_random_encoder():
    model = build()
    encoder, scaled = model.get_layer("encoder").model, model.get_layer("scaling")(images(16))
    before = [np.std(output) for output in encoder(scaled, training=False)]
    calibrate_batch_norm(encoder, scaled)
    after = [np.std(output) for output in encoder(scaled, training=False)]
    assert before[-1] < 1e-3
    assert all(deviation > 0.1 for deviation in after)
    assert not encoder.trainable_variables


def test_weights_from_a_file_reach_the_encoder(tmp_path):
    file = tmp_path / "encoder.weights.h5"
    keras.utils.set_random_seed(1)
    source = keras.applications.MobileNetV2(input_shape=[32, 32, 3], alpha=0.35, include_top=False, weights=None)
    source.save_weights(file)
    encoder = encoders.build_encoder(
        "mobilenet_v2", image_size=(64, 64), alpha=0.35, weights=str(file)
    )  # the size may differ, the widths may not
    for layer in filter(lambda layer: layer.weights, encoder.layers):
        for ours, theirs in zip(layer.get_weights(), source.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_weights_that_do_not_fit_name_the_first_layer(tmp_path):
    file = tmp_path / "encoder.weights.h5"
    keras.applications.MobileNetV2(input_shape=[32, 32, 3], alpha=0.5, include_top=False, weights=None).save_weights(
        file
    )
    with pytest.raises(ConfigError, match=r"layer Conv1 has shape \(3, 3, 3, 24\), the file has \(3, 3, 3, 16\)"):
        encoders.build_encoder("mobilenet_v2", image_size=(32, 32), alpha=0.75, weights=str(file))


def test_files_that_are_no_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        encoders.build_encoder("mobilenet_v2", image_size=(32, 32), alpha=0.35, weights=str(tmp_path / "missing.h5"))
    text = tmp_path / "text.weights.h5"
    text.write_text("these are no weights")
    with pytest.raises(ConfigError, match="does not fit this encoder"):
        encoders.build_encoder("mobilenet_v2", image_size=(32, 32), alpha=0.35, weights=str(text))


def test_imagenet_weights_out_of_reach_name_the_ways_on(monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(keras.applications, "MobileNetV2", no_network)
    with pytest.raises(ConfigError, match=r"--encoder_weights=imagenet: cannot be downloaded; must be .*no route"):
        encoders.build_encoder("mobilenet_v2", image_size=(32, 32), alpha=0.35, weights="imagenet")


def test_the_decoder_block_is_that_of_pix2pix():
    pix2pix = pytest.importorskip("tensorflow_examples.models.pix2pix.pix2pix", reason="tensorflow-examples is absent")
    model = build()
    ours = keras.Model(model.get_layer("upsample_64").input, model.get_layer("relu_64").output)
    theirs = pix2pix.upsample(64, 3)
    x = tf.random.normal([2, *ours.input_shape[1:]])
    theirs(x)
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_the_real_imagenet_weights(real_weights):
    encoder = encoders.build_encoder("mobilenet_v2", image_size=(128, 128), alpha=1.0, weights=real_weights)
    np.testing.assert_allclose(encoder.get_layer("bn_Conv1").get_weights()[3], 0.999, atol=1e-4)
    assert all(np.std(output) > 0.1 for output in encoder(images(2, 128) / 255))
