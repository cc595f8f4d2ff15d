"""The encoders by name: their five maps, and the row that the package's README has of each."""

import functools
import inspect
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from petseg.config.model_config import DECODERS, ENCODERS, KERAS_ENCODERS, ModelConfig
from petseg.errors import ConfigError
from petseg.models import encoders, feature_maps, mixed_precision, unet
from petseg.models.batch_norm_calibration import calibrate_batch_norm
from petseg.training import flops

CHANNELS = {
    "mobilenet_v2": (96, 144, 192, 576, 320),
    "mobilenet_v3_small": (16, 72, 96, 288, 96),
    "mobilenet_v3_large": (64, 72, 240, 672, 160),
    "efficientnet_v2_b0": (16, 32, 192, 672, 192),
    "efficientnet_v2_b1": (16, 32, 192, 672, 192),
    "efficientnet_v2_b2": (16, 32, 224, 720, 208),
    "efficientnet_v2_b3": (16, 40, 224, 816, 232),
    "resnet50_v2": (64, 64, 128, 256, 2048),
    "convnext_tiny": (12, 96, 192, 384, 768),
    "tiny": (8, 16, 24, 32, 48),
}
_EFFICIENTNET_V2 = (
    "into block2a_expand_conv", "into block3a_expand_conv", "into block4a_dwconv2", "into block6a_dwconv2",
    "into top_conv",
)  # fmt: skip
EARLIER_MAPS = {  # the table that petseg had before it found maps by their shapes
    "mobilenet_v2": ("block_1_expand_relu", "block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu",
                     "block_16_project"),
    "mobilenet_v3_small": ("into expanded_conv_depthwise_pad", "into expanded_conv_1_depthwise_pad",
                           "into expanded_conv_3_depthwise_pad", "into expanded_conv_8_depthwise_pad",
                           "expanded_conv_10_add"),
    "mobilenet_v3_large": ("into expanded_conv_1_depthwise_pad", "into expanded_conv_3_depthwise_pad",
                           "into expanded_conv_6_depthwise_pad", "into expanded_conv_12_depthwise_pad",
                           "expanded_conv_14_add"),
    **dict.fromkeys([f"efficientnet_v2_b{size}" for size in range(4)], _EFFICIENTNET_V2),
    "resnet50_v2": ("conv1_conv", "conv2_block3_1_relu", "conv3_block4_1_relu", "conv4_block6_1_relu", "output"),
    "convnext_tiny": ("picture", "convnext_tiny_stage_0_block_2_identity", "convnext_tiny_stage_1_block_2_identity",
                      "convnext_tiny_stage_2_block_8_identity", "output"),
    "tiny": ("stage_1", "stage_2", "stage_3", "stage_4", "stage_5"),
}  # fmt: skip
TABLED = ("mobilenet_v2", "resnet50_v2")  # the encoders of the README's table of decoders


def operations(model):
    """Floating-point operations of a forward pass for an image."""
    spec = tf.TensorSpec([1, *model.input_shape[1:]], tf.float32)
    graph = tf.function(lambda x: model(x, training=False), autograph=False).get_concrete_function(spec).graph
    return flops.flops(graph)


def cells(encoder, decoder):
    """Weights and operations of a network, as in the README."""
    model = unet.build_unet(
        image_size=(128, 128),
        num_classes=3,
        encoder=keras.models.clone_model(encoder),
        train_encoder=False,
        input_scaling="unit",
        decoder=decoder,
    )
    return f"{model.count_params():,} | {operations(model) / 1e9:.2f}"


def readme():
    return (ROOT / "petseg" / "models" / "README.md").read_text().splitlines()


def marked(mark):
    """The encoders; those that take long to build are tested where the mark is asked for."""
    return [name if name in ("mobilenet_v2", "tiny") else pytest.param(name, marks=mark) for name in ENCODERS]


def recorded_networks(name, monkeypatch):
    """The networks that `keras.applications` builds for an encoder from now on."""
    networks, kind = [], encoders.keras_name(name)
    if build := getattr(keras.applications, kind, None):  # all but tiny

        @functools.wraps(build)
        def recorded(**options):
            networks.append(build(**options))
            return networks[-1]

        monkeypatch.setattr(keras.applications, kind, recorded)
    return networks


def earlier_map(network, source):
    if source.startswith("into "):
        return network.get_layer(source.removeprefix("into ")).input
    return network.outputs[0] if source == "output" else network.get_layer(source).output


@pytest.mark.parametrize("name", marked(pytest.mark.slow))
def test_the_maps_of_an_encoder_with_a_name_of_earlier_versions_are_those_of_earlier_versions(name, monkeypatch):
    networks = recorded_networks(name, monkeypatch)
    encoder = encoders.build_encoder(name, image_size=(32, 64))
    shapes = [tuple(output.shape[1:]) for output in encoder.outputs]
    assert shapes == [(32 >> level, 64 >> level, c) for level, c in enumerate(CHANNELS[name], start=1)]
    for found, source in zip(encoder.outputs, EARLIER_MAPS[name], strict=True):
        if source == "picture":
            assert encoder.get_layer("picture").output is found
        else:
            assert earlier_map(networks[0] if networks else encoder, source) is found


@pytest.mark.parametrize("name", marked(pytest.mark.soak))
def test_sizes_and_costs_of_encoders_and_networks_are_those_of_the_readme(name):
    encoder = encoders.build_encoder(name, image_size=(128, 128))
    channels = ", ".join(map(str, CHANNELS[name]))
    assert f"| `{name}` | {channels} | {encoder.count_params():,} | {cells(encoder, 'lighter')} |" in readme()


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        ("segformer", "mobilenet_v2"),
        *(pytest.param(*pair, marks=pytest.mark.soak) for pair in itertools.product(DECODERS, TABLED)),
    ],
)
def test_costs_of_decoders_are_those_of_the_readme(decoder, name):
    (row,) = (line for line in readme() if line.startswith(f"| `{decoder}` |"))
    assert f"| {cells(encoders.build_encoder(name, image_size=(128, 128)), decoder)} |" in row


def test_an_encoder_that_lacks_a_size_is_refused_by_name(monkeypatch):
    images = keras.Input([32, 64, 3])
    network = keras.Model(images, keras.layers.Conv2D(4, 3, strides=3)(images))
    monkeypatch.setattr(keras.applications, "VGG16", lambda **_: network)
    with pytest.raises(
        ConfigError, match=r"--encoder=VGG16: its maps of \(32, 64\) pixels are .*; must be \[\(16, 32\)"
    ):
        encoders.build_encoder("VGG16", image_size=(32, 64))


def test_every_model_of_keras_has_its_name_and_the_scaling_of_its_weights():
    functions = {name: each for name, each in vars(keras.applications).items() if inspect.isfunction(each)}
    assert sorted(functions) == sorted(KERAS_ENCODERS)
    pixel = np.array([[[[10.0, 60.0, 200.0]]]])
    for name, function in functions.items():
        module = getattr(keras.applications, function.__module__.rpartition(".")[2])
        factor, offset = encoders.scaling(name, "encoder")
        found, expected = pixel * factor + offset, module.preprocess_input(pixel.copy())
        if encoders.reads_bgr(name):
            found = found[..., ::-1]
        if (expected == pixel).all():  # scaled by the network itself
            expected = pixel / INSIDE[name][0] - INSIDE[name][1] if name in INSIDE else torch_scaling(pixel)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def torch_scaling(pixel):
    return keras.applications.imagenet_utils.preprocess_input(pixel.copy(), mode="torch")


INSIDE = dict.fromkeys(["MobileNetV3Small", "MobileNetV3Large"], (127.5, 1.0)) | dict.fromkeys(
    ["EfficientNetV2S", "EfficientNetV2M", "EfficientNetV2L"], (128.0, 1.0)
)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pretrained_kernels_of_bgr_see_red_green_and_blue(channels, monkeypatch):
    keras.utils.set_random_seed(0)
    downloaded = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    genuine = keras.applications.VGG16

    def vgg(weights, **options):
        network = genuine(weights=None, **options)
        if weights:
            network.set_weights(downloaded.get_weights())
        return network

    monkeypatch.setattr(keras.applications, "VGG16", vgg)
    encoder = encoders.build_encoder("VGG16", image_size=(32, 32), weights="imagenet", channels=channels)
    kernel, bias = (weight.numpy() for weight in downloaded.weights[:2])
    image = np.random.default_rng(0).uniform(-1, 1, [1, 32, 32, channels]).astype(np.float32)
    colours = {1: np.ones([1, 3]), 3: np.eye(3), 4: 0.75 * np.eye(3)[[0, 1, 2, 0]]}[channels]
    rgb = image @ colours
    expected = tf.nn.relu(tf.nn.conv2d(rgb[..., ::-1].astype(np.float32), kernel, 1, "SAME") + bias)
    first = keras.Model(encoder.inputs, encoder.get_layer("block1_conv1").output)
    np.testing.assert_allclose(first(image), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_statistics_of_input_channels_do_not_keep_pretrained_weights_from_other_channels(channels, monkeypatch):
    def network(weights=None, input_shape=None, include_top=False):
        images = keras.Input(input_shape or [32, 32, 3])
        x = keras.layers.Normalization()(keras.layers.Rescaling(1 / 255)(images))
        for _ in range(5):
            x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(x)
        return keras.Model(images, x)

    monkeypatch.setattr(keras.applications, "EfficientNetB0", network)
    encoder = encoders.build_encoder("EfficientNetB0", image_size=(32, 32), weights="imagenet", channels=channels)
    assert encoder.input_shape[-1] == channels
    assert not any(isinstance(layer, keras.layers.Normalization) for layer in encoder.layers)


def test_valid_padding_becomes_same_and_scaling_layers_go_with_the_weights_kept():
    images = x = keras.Input([64, 96, 3])
    x = keras.layers.Normalization(mean=[0.5] * 3, variance=[0.25] * 3)(keras.layers.Rescaling(1 / 255)(x))
    x = keras.layers.Conv2D(4, 3, strides=2)(x)
    x = keras.layers.Conv2D(4, 3, strides=2)(keras.layers.ZeroPadding2D()(x))
    network = keras.Model(images, keras.layers.MaxPooling2D(3, 2)(keras.layers.DepthwiseConv2D(3)(x)))
    adjusted = feature_maps.adjusted(network)
    assert adjusted.output_shape == (None, 8, 12, 4)
    assert not any(isinstance(layer, keras.layers.Rescaling) for layer in adjusted.layers)
    for ours, theirs in zip(adjusted.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_sizes_that_a_network_does_not_take_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^--encoder=InceptionV3: ValueError: Input size must be at least 75x75.*$"):
        encoders.build_encoder("InceptionV3", image_size=(64, 64))


def test_another_encoder_has_its_own_default_of_input_scaling():
    names = ("tiny", "mobilenet_v2", "ResNet50", "hub:ResNetBackbone")
    found = [ModelConfig(encoder=name, encoder_weights="none").input_scaling for name in names]
    assert found == ["unit", "unit", "encoder", "encoder"]
    assert ModelConfig().changed(encoder="ResNet50").input_scaling == "encoder"
    assert ModelConfig(input_scaling="symmetric").changed(encoder="ResNet50").input_scaling == "symmetric"


# One of each family, at the smallest size that it takes; of the larger ones, CI looks at the maps only.
STEPPED = {"VGG16": 32, "MobileNet": 32, "EfficientNetB0": 32, "Xception": 96, "ConvNeXtTiny": 32}
BUILT = {"ResNet50": 32, "DenseNet121": 32, "EfficientNetV2S": 32, "InceptionV3": 96}
HUB_CLASSES = {"hub:ResNetBackbone": 32, "hub:ViTBackbone": 32}


# All other models of keras.applications, some of which have smallest sizes.
OTHERS = {
    name: 96 if name.startswith(("Inception", "NASNet", "Xception")) else 32
    for name in KERAS_ENCODERS
    if name not in STEPPED
}


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (STEPPED | HUB_CLASSES).items()),
        *(pytest.param(*each, marks=pytest.mark.soak) for each in OTHERS.items()),
    ],
)
def test_an_encoder_with_random_weights_is_stepped_and_exported(name, side, tmp_path):
    if name in HUB_CLASSES:
        pytest.importorskip("keras_hub", reason="keras-hub is not installed", exc_type=ImportError)
    encoder = encoders.build_encoder(name, image_size=(side, side))
    model = unet.build_unet(
        image_size=(side, side),
        num_classes=3,
        encoder=encoder,
        train_encoder=True,
        input_scaling=encoders.scaling(name, "encoder"),
        decoder="lighter",
    )
    images = tf.random.stateless_uniform([2, side, side, 3], [0, 0], 0, 255)
    calibrate_batch_norm(encoder, model.get_layer("scaling")(images))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(images, training=True)))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    assert np.isfinite(loss.numpy())
    assert all(gradient is not None for gradient in gradients)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(images), model(images), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), BUILT.items())
def test_an_encoder_of_a_large_family_has_maps_of_all_sizes(name, side):
    encoder = encoders.build_encoder(name, image_size=(side, 2 * side))
    assert [output.shape[1:3] for output in encoder.outputs] == list(feature_maps.levels((side, 2 * side)))


@pytest.mark.parametrize(("precision", "count"), [("mixed_float16", 1), ("float32", 2)])
def test_an_encoder_that_is_calibrated_on_few_small_images_stays_finite(precision, count):
    keras.utils.set_random_seed(0)
    with mixed_precision.dtype_policy(precision):
        images = x = keras.Input([32, 32, 3])
        maps = []
        for _ in range(encoders.LEVELS):
            x = keras.layers.MaxPooling2D(2)(x)
            for _ in range(6):
                x = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 1, activation="swish")(x))
            maps.append(x)
        encoder = keras.Model(images, maps)
    pixels = tf.random.stateless_uniform([4, 32, 32, 3], [0, 0])
    calibrate_batch_norm(encoder, pixels[:count])
    for each in (pixels[:count], pixels):
        assert 0.1 < np.abs(encoder(each, training=False)[-1]).max() < 1000
