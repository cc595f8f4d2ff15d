"""Encoder weights from files of several kinds, of networks that contain the encoder or differ from it."""

import logging

import h5py
import keras
import numpy as np
import pytest
import safetensors.numpy

from petseg.classes import PETS
from petseg.config import Config
from petseg.errors import ConfigError
from petseg.models import encoders, unet
from petseg.runs import packed_run

SIZE = (32, 32)


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(3)
    model = keras.applications.MobileNetV2(input_shape=(*SIZE, 3), alpha=0.35, weights=None, classes=7)
    for weight in model.weights:
        weight.assign(np.random.default_rng(weight.shape[0]).normal(size=weight.shape))
    return model


def load(path, name="mobilenet_v2", alpha=0.35, channels=3):
    return encoders.build_encoder(name, image_size=SIZE, alpha=alpha, weights=str(path), channels=channels)


def check(encoder, network, channels=3):
    for layer in (layer for layer in encoder.layers if layer.weights):
        for ours, theirs in zip(layer.get_weights(), network.get_layer(layer.name).get_weights(), strict=True):
            if ours.shape != theirs.shape:
                theirs = theirs[:, :, [0, 1, 2, 0, 1][:channels]] * np.float32(3 / channels)
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def renamed_as_keras_2(path, network):
    with h5py.File(path, "w") as file:
        for layer in network.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name.replace('kernel', 'depthwise_kernel')}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, values in zip(names, layer.get_weights(), strict=True):
                group[name] = values


def without_names(path, network):
    """A file as Keras wrote them before version 3.7, without the names of layers."""
    network.save_weights(path)
    with h5py.File(path, "r+") as file:
        file.visititems(lambda _, item: item.attrs.pop("name", None) and None)


def nested(path, network):
    inner = keras.models.clone_model(network)
    inner.set_weights(network.get_weights())
    keras.Sequential([keras.Input((*SIZE, 3)), inner, keras.layers.Dense(2)]).save(path)


def named(path, network):
    tensors = {weight.path.replace("/", "."): weight.numpy() for weight in network.weights}
    safetensors.numpy.save_file(tensors, path)


KINDS = {
    "classifier.weights.h5": lambda path, network: network.save_weights(path),
    "classifier.keras": lambda path, network: network.save(path),
    "whole.h5": lambda path, network: network.save(path),
    "keras_2.h5": renamed_as_keras_2,
    "keras_3_0.weights.h5": without_names,
    "nested.keras": nested,
    "named.safetensors": named,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_is_found_in_a_file_of_a_network_that_contains_it(classifier, tmp_path, kind, caplog):
    KINDS[kind](tmp_path / kind, classifier)
    channels = 5 if kind.startswith("n") else 3
    with caplog.at_level(logging.INFO, "petseg"):
        check(load(tmp_path / kind, channels=channels), classifier, channels)
    assert not [record for record in caplog.records if record.name.startswith("petseg")]


def tiny_run(channels=3, **options):
    encoder = encoders.build_encoder("tiny", image_size=SIZE, channels=channels)
    model = unet.build_unet(image_size=SIZE, num_classes=2, encoder=encoder, train_encoder=True, input_scaling="unit",
                            decoder="lighter", **options)  # fmt: skip
    return encoder, model


@pytest.mark.parametrize("suffix", ["keras", "weights.h5", "safetensors"])
def test_the_encoder_of_a_run_is_found_though_its_layers_have_the_numbers_of_another_process(tmp_path, suffix):
    encoder, model = tiny_run()
    path = tmp_path / f"run.{suffix}"
    if suffix == "safetensors":
        packed_run.pack(path, model, Config(), PETS, {"step": 0, "weights": "raw"})
    elif suffix == "keras":
        model.save(path)
    else:
        model.save_weights(path)
    found = load(path, "tiny", alpha=1)
    for ours, theirs in zip(found.get_weights(), encoder.get_weights(), strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_listed_and_stays_random(tmp_path, caplog):
    source = encoders.build_encoder("tiny", image_size=SIZE)
    source.save_weights(tmp_path / "tiny.weights.h5")
    with h5py.File(tmp_path / "tiny.weights.h5", "r+") as file:
        del file["layers/conv2d_4/vars/0"]
        wider = np.zeros([24], np.float32)
        del file["layers/batch_normalization_1/vars/0"]
        file["layers/batch_normalization_1/vars/0"] = wider
    with caplog.at_level(logging.WARNING, "petseg"):
        found = load(tmp_path / "tiny.weights.h5", "tiny", alpha=1)
    (record,) = caplog.records
    assert (
        "2 of 25 weights do not fit and stay random: layer stage_2_norm has shape (16,), the file has (24,); conv2d"
        in (record.getMessage())
    )
    np.testing.assert_array_equal(found.weights[0], source.weights[0])


def test_a_file_of_another_network_is_refused(tmp_path):
    keras.applications.VGG16(include_top=False, weights=None, input_shape=(*SIZE, 3)).save_weights(
        tmp_path / "vgg.weights.h5"
    )
    with pytest.raises(ConfigError, match=r"does not fit this encoder: it has no .*"):
        load(tmp_path / "vgg.weights.h5")
