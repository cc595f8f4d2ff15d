"""The decoders, an encoder that is trained from a stage on, and a network that sees pictures at another size."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg.config import ModelConfig
from petseg.errors import ConfigError
from petseg.models import decoders, dilation, encoders, logit_adjustment, mixed_precision, unet
from petseg.models.batch_norm_calibration import calibrate_batch_norm
from petseg.models.layers import BilinearUpsample, DepthToSpace, InferenceMode, SpaceToDepth, Upsample
from petseg.reporting import model_diagram

PAPERS = ("deeplab_v3plus", "fpn", "segformer")


def build(name="tiny", *, size=(32, 64), inner=None, classes=5, train=True, **options):
    encoder = encoders.build_encoder(name, image_size=inner or size)
    return unet.build_unet(
        image_size=size, num_classes=classes, encoder=encoder, train_encoder=train, input_scaling="unit", **options
    )


def images(count=2, size=(32, 64)):
    return tf.constant(np.random.default_rng(0).uniform(0, 255, (count, *size, 3)).astype(np.float32))


@pytest.mark.slow
def test_the_light_decoders_have_less_than_half_a_million_weights():
    for decoder, count in (("light", 463_564), ("lighter", 273_612)):
        model = build("mobilenet_v2", classes=3, decoder=decoder)
        assert model.count_params() - model.get_layer("encoder").count_params() == count <= 500_000


@pytest.mark.parametrize(
    ("decoder", "inner"),
    [
        *itertools.product(("pix2pix", "light"), (None, (64, 96), (64, 128))),
        *((name, None) for name in PAPERS),
        *itertools.product(("segformer",), ((64, 96), (64, 128))),
    ],
)
def test_any_size_any_number_of_classes_and_any_size_inside(decoder, inner):
    model = build(inner=inner, decoder=decoder)
    logits = model(images())
    assert (logits.shape, logits.dtype) == ((2, 32, 64, 5), tf.float32)
    assert tuple(model.get_layer("encoder").model.input_shape[1:3]) == (inner or (32, 64))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(images(), training=True) ** 2)
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_variables])
    assert all(gradient is not None for gradient in gradients)


def test_pixels_as_channels_and_back_and_pixels_repeated_have_keras_gradients():
    x = tf.random.stateless_normal([2, 4, 6, 3], [0, 0])
    np.testing.assert_array_equal(DepthToSpace(2)(SpaceToDepth(2)(x)), x)
    outputs, gradients = [], []
    for layer in (lambda x: Upsample()(x, training=True), keras.layers.UpSampling2D(2)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs.append(layer(x))
            loss = tf.reduce_sum(tf.sin(outputs[-1]))
        gradients.append(tape.gradient(loss, x))
    np.testing.assert_array_equal(*outputs)
    np.testing.assert_allclose(*gradients, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(Upsample()(x), outputs[0])


@pytest.mark.parametrize(
    ("first", "trained", "frozen_skips"),
    [("all", [1, 2, 3, 4, 5], []), ("stage_3", [3, 4, 5], [64, 128]), ("stage_5_norm", [5], [64, 128, 256, 512])],
)
def test_an_encoder_is_trained_from_a_stage_or_layer_on(first, trained, frozen_skips):
    model = build(first_trained=first)
    names = {weight.path for weight in model.get_layer("encoder").trainable_variables}
    assert sorted(int(name[6]) for name in names if "gamma" in name) == trained
    # The gradient of a frozen stage's skip is left out, where it would be computed.
    cut = [layer.trained_channels for layer in model.layers if getattr(layer, "trained_channels", None)]
    assert sorted(cut) == frozen_skips
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(images(), training=True) ** 2)
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_variables])
    assert all(np.any(gradient) for gradient in gradients if gradient.shape != [])


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"--train_encoder_from=stage_9: must be all, none, stage_1, .* or a layer"):
        build(first_trained="stage_9")


def test_first_trained_follows_from_the_flags_of_the_encoder():
    assert [ModelConfig(**flags).first_trained for flags in (
        {}, {"train_encoder": True}, {"train_encoder_from": "stage_4"},
        {"train_encoder": True, "train_encoder_from": "stage_2"}, {"train_encoder_from": "none"},
    )] == ["none", "all", "stage_4", "stage_2", "none"]  # fmt: skip
    with pytest.raises(ConfigError, match="--train_encoder and --train_encoder_from=none: must not be given together"):
        ModelConfig(train_encoder=True, train_encoder_from="none")


def test_calibration_keeps_frozen_layers_frozen():
    model = build(first_trained="stage_3")
    before = len(model.get_layer("encoder").trainable_variables)
    calibrate_batch_norm(model.get_layer("encoder").model, images() / 255)
    assert len(model.get_layer("encoder").trainable_variables) == before


@pytest.mark.parametrize(("decoder", "half"), [("pix2pix", False), ("light", False), ("light", True)])
def test_adjusted_logits_give_the_probabilities_divided_by_the_class_weights(decoder, half):
    model = build(inner=(64, 128) if half else None, decoder=decoder)
    weights = np.array([0.5, 2.0, 0.0, 1.0, 3.0])
    before = tf.nn.softmax(model(images(), training=False)).numpy()
    logit_adjustment.adjust_logits(model, weights)
    after = tf.nn.softmax(model(images(), training=False)).numpy()
    divided = before / np.where(weights > 0, weights, 1.0)
    np.testing.assert_allclose(after, divided / divided.sum(axis=-1, keepdims=True), rtol=1e-4)


def test_a_network_without_a_bias_per_class_cannot_be_adjusted():
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(5, 1, use_bias=False, name="logits")])
    for weights in ([1.0, 2.0], [1.0] * 5):
        with pytest.raises(ConfigError, match="--logit_adjustment: the network must have a layer named 'logits'"):
            logit_adjustment.adjust_logits(network, weights)


@pytest.mark.parametrize("decoder", ["pix2pix", "light"])
def test_every_level_of_a_decoder_is_drawn(decoder):
    figure = model_diagram.draw(build(size=(32, 32), decoder=decoder))
    texts = [text.get_text() for text in figure.axes[0].texts]
    word = {"pix2pix": "upsample, concatenate", "light": "upsample, add"}[decoder]
    assert sum(text.startswith(word) for text in texts) == 4


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_bilinear_upsampling_has_the_gradient_of_float32_in_half_precision_under_xla(dtype):
    layer = BilinearUpsample(4, dtype=dtype)
    x = tf.random.stateless_normal([2, 4, 6, 3], [0, 0])

    @tf.function(jit_compile=True, autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(tf.cast(layer(x), tf.float32)))
        return tape.gradient(loss, x)

    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.sin(tf.image.resize(x, (16, 24))))
    np.testing.assert_allclose(gradient(x), tape.gradient(loss, x), atol={"float32": 1e-5}.get(dtype, 0.1))


@pytest.mark.slow
def test_a_decoder_in_half_precision_under_xla_has_the_gradients_of_float32():
    gradients = []
    for precision in ("float32", "mixed_float16"):
        with mixed_precision.dtype_policy(precision):
            model = build(size=(64, 64), decoder="deeplab_v3plus", train=False)
        model.set_weights(gradients[0][0].get_weights() if gradients else model.get_weights())
        if not gradients:
            calibrate_batch_norm(model.get_layer("encoder").model, images(2, (64, 64)) / 255)

        @tf.function(jit_compile=precision != "float32", autograph=False)
        def compute(model=model):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.sin(model(images(2, (64, 64)), training=True)))
            return tape.gradient(loss, [weight.value for weight in model.trainable_weights])

        gradients.append((model, np.concatenate([np.ravel(gradient) for gradient in compute()])))
    (_, expected), (_, found) = gradients
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["tiny", "mobilenet_v2"])
def test_a_dilated_encoder_has_the_last_map_of_the_encoder_at_every_second_pixel(name):
    encoder = encoders.build_encoder(name, image_size=(64, 96), alpha=0.35)
    rng = np.random.default_rng(0)
    for weight in encoder.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    for expected, found in zip(
        encoder(images(1, (64, 96))), dilation.dilated(encoder)(images(1, (64, 96))), strict=True
    ):
        found = found[:, 1::2, 1::2] if found.shape != expected.shape else found
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.shape == (1, 2, 3, expected.shape[3])


def test_an_encoder_that_cannot_be_dilated_stays_as_it_is(caplog):
    caplog.set_level("INFO")
    x = inputs = keras.Input([64, 64, 3])
    outputs = [x := keras.Sequential([keras.layers.Conv2D(4, 2, strides=2)])(x) for _ in range(encoders.LEVELS)]
    encoder = keras.Model(inputs, outputs)
    assert dilation.dilated(encoder) is encoder
    assert "the encoder's last map stays at 1/32 of the size" in caplog.text
    model = unet.build_unet(
        image_size=(64, 64), num_classes=5, encoder=encoder, train_encoder=True, input_scaling="unit",
        decoder="deeplab_v3plus",
    )  # fmt: skip
    assert model.output_shape == (None, 64, 64, 5)


def test_deeplab_works_at_a_sixteenth_of_the_size_with_rates_that_fit_the_map():
    model = build(size=(256, 512), decoder="deeplab_v3plus")
    assert model.get_layer("encoder").output[-1].shape[1:3] == (16, 32)
    rates = [layer.dilation_rate[0] for layer in model.layers if layer.name.endswith("depthwise")]
    assert rates == [3, 6, 9, 1, 1]
    assert [decoders.atrous_rates(side) for side in (1, 2, 8, 33, 200)] == [
        (1, 1, 1), (1, 1, 1), (1, 3, 4), (6, 12, 18), (6, 12, 18)
    ]  # fmt: skip


def test_segformer_fuses_concatenated_maps():
    model = build(decoder="segformer")
    taps = model.get_layer("encoder").output[1:]
    maps = dict(
        zip(range(2, 6), keras.Model(model.inputs, [*taps, model.get_layer("sum").output])(images()), strict=False)
    )
    found = keras.Model(model.inputs, model.get_layer("sum").output)(images())
    linear = [tf.image.resize(model.get_layer(f"linear_{level}")(each), (8, 16)) for level, each in maps.items()]
    kernels = [model.get_layer(f"fuse_{level}").kernel.value for level in maps]
    expected = tf.nn.conv2d(tf.concat(linear, -1), tf.concat(kernels, 2), 1, "SAME")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decoder", PAPERS)
def test_decoders_without_four_joints_have_no_diagram(decoder):
    assert model_diagram.draw(build(size=(32, 32), decoder=decoder)) is None


@pytest.mark.parametrize("decoder", ["pix2pix", "light", *PAPERS])
def test_a_network_survives_saving(tmp_path, decoder):
    model = build(inner=(64, 64), decoder=decoder)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(images()), model(images()), rtol=1e-5, atol=1e-6)
    assert isinstance(again.get_layer("encoder"), InferenceMode)
