"""The encoders by name: their five maps, and the row that the package's README has of each."""

import itertools

import keras
import pytest
import tensorflow as tf
from conftest import ROOT

from petseg.config.model_config import DECODERS, ENCODERS
from petseg.errors import ConfigError
from petseg.models import encoders, unet
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


@pytest.mark.parametrize("name", marked(pytest.mark.slow))
def test_the_five_maps_of_an_encoder_have_half_to_a_thirty_second_of_its_size(name):
    shapes = [tuple(output.shape[1:]) for output in encoders.build_encoder(name, image_size=(64, 64)).outputs]
    assert shapes == [(64 >> level, 64 >> level, c) for level, c in enumerate(CHANNELS[name], start=1)]


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
    kind = encoders._ENCODERS["tiny"]
    monkeypatch.setitem(encoders._ENCODERS, "tiny", kind._replace(taps=("stage_2", *kind.taps[1:])))
    with pytest.raises(
        ConfigError, match=r"--encoder=tiny: its maps of \(32, 64\) pixels are .*; must be \[\(16, 32\)"
    ):
        encoders.build_encoder("tiny", image_size=(32, 64))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("mobilenet_v2", [-1] * 3, [1] * 3), ("convnext_tiny", [-2.118, -2.036, -1.804], [2.249, 2.429, 2.64])],
)
def test_an_encoders_own_scaling_is_that_of_its_weights(name, low, high):
    scale, offset = encoders.scaling(name, "encoder")
    scaled = keras.layers.Rescaling(scale, offset)(tf.constant([[0.0] * 3, [255.0] * 3]))
    assert scaled.numpy().tolist() == [pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3)]
