"""Backbones of keras-hub as encoders."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg.config import ModelConfig
from petseg.deployment import export
from petseg.errors import ConfigError
from petseg.models import encoders, keras_hub_encoders, unet

SIZE = (64, 96)


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("keras_hub", reason="keras-hub is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def preset(library, tmp_path_factory):
    """A folder with a small ResNet and the scaling of its images, as presets have them."""
    folder = str(tmp_path_factory.mktemp("preset") / "resnet")
    backbone = library.models.ResNetBackbone(
        [64], [7], [64, 64, 64, 64], [1, 1, 1, 1], [1, 2, 2, 2], "basic_block", image_shape=(None, None, 3)
    )
    backbone.save_to_preset(folder)
    converter = library.models.ResNetImageClassifierPreprocessor.image_converter_cls
    converter(scale=[0.5, 0.25, 0.125], offset=[1.0, 2.0, 3.0]).save_to_preset(folder)
    return folder, backbone


@pytest.mark.parametrize("channels", [3, 4])
def test_a_preset_brings_weights_maps_and_scaling(preset, channels):
    folder, backbone = preset
    encoder = encoders.build_encoder(f"hub:{folder}", image_size=SIZE, weights="imagenet", channels=channels)
    assert [output.shape[1:] for output in encoder.outputs] == [
        (32, 48, 64), (16, 24, 64), (8, 12, 64), (4, 6, 64), (2, 3, 64)
    ]  # fmt: skip
    kernel, *others = backbone.get_weights()
    kernel = kernel if channels == 3 else kernel[:, :, [0, 1, 2, 0]] * 3 / 4
    for found, expected in zip(encoder.get_weights(), [kernel, *others], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert encoders.scaling(f"hub:{folder}", "encoder") == ([0.5, 0.25, 0.125], [1.0, 2.0, 3.0])
    random = encoders.build_encoder(f"hub:{folder}", image_size=SIZE)
    assert not np.array_equal(random.get_weights()[0], backbone.get_weights()[0])


def test_maps_of_a_transformer_with_one_stride_are_made_of_its_tokens(library, monkeypatch, tmp_path):
    monkeypatch.setitem(
        keras_hub_encoders.SMALLEST,
        "ViTBackbone",
        {"patch_size": 16, "num_layers": 1, "num_heads": 1, "hidden_dim": 8, "mlp_dim": 8},
    )
    encoder = encoders.build_encoder("hub:ViTBackbone", image_size=SIZE)
    assert [output.shape[1:] for output in encoder.outputs] == [
        (32, 48, 12), (16, 24, 8), (8, 12, 8), (4, 6, 8), (2, 3, 8)
    ]  # fmt: skip
    image = np.random.default_rng(0).uniform(size=[1, *SIZE, 3]).astype(np.float32)
    maps = [each.numpy() for each in encoder(image)]
    tokens = keras.Model(encoder.inputs, encoder.get_layer("vit_encoder").output)(image)
    np.testing.assert_allclose(maps[3].reshape(1, 24, 8), tokens[:, 1:], atol=1e-6)
    np.testing.assert_array_equal(maps[1], maps[3].repeat(4, 1).repeat(4, 2))
    np.testing.assert_allclose(maps[4], maps[3].reshape(1, 2, 2, 3, 2, 8).mean((2, 4)), atol=1e-6)
    again = encoders.build_encoder("hub:ViTBackbone", image_size=SIZE)
    network, other = (
        unet.build_unet(image_size=SIZE, num_classes=3, encoder=each, train_encoder=False, input_scaling="unit")
        for each in (encoder, again)
    )
    saved = tf.train.Checkpoint(model=network).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=other).read(saved).assert_consumed()
    for ours, restored in zip(encoder.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, restored)
    encoder.save(tmp_path / "encoder.keras")
    for ours, loaded in zip(maps, keras.saving.load_model(tmp_path / "encoder.keras")(image), strict=True):
        np.testing.assert_array_equal(ours, loaded)


@pytest.mark.slow
def test_a_segformer_is_trained_and_exported(library, monkeypatch, tmp_path):
    for package in ("tf2onnx", "onnxruntime"):
        pytest.importorskip(package)
    small = {"layerwise_depths": [1, 1, 1, 1], "hidden_dims": [8, 16, 16, 16], "layerwise_num_heads": [1, 2, 2, 2]}
    monkeypatch.setitem(keras_hub_encoders.SMALLEST, "MiTBackbone", keras_hub_encoders.SMALLEST["MiTBackbone"] | small)
    encoder = encoders.build_encoder("hub:MiTBackbone", image_size=(64, 64))
    model = unet.build_unet(
        image_size=(64, 64),
        num_classes=2,
        encoder=encoder,
        train_encoder=True,
        input_scaling="unit",
        decoder="segformer",
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(images.astype(np.float32), training=True)))
    assert all(each is not None for each in tape.gradient(loss, [weight.value for weight in model.trainable_weights]))
    formats = ["saved_model", "keras", "onnx"]
    agreements = export.export(model, formats, str(tmp_path), images, calibration=None, card={})
    assert [(each.format, each.largest_difference < 1e-5) for each in agreements] == [(name, True) for name in formats]


REFUSED = {
    "hub:nonsense": "must be an image preset that keras-hub can load, or one of DenseNetBackbone, ",
    "hub:mit_b0_ade20k_51": "did you mean mit_b0_ade20k_512",
    "hub:VGGBackbone": "must be a preset of it, or one of DenseNetBackbone, ",
    "hub:MiTBackbone": r"images of \(64, 96\); must be square: --inner_size=SIDE",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_an_encoder_is_refused_in_one_line(library, name, monkeypatch):
    smallest = keras_hub_encoders.SMALLEST["MiTBackbone"] | {"layerwise_depths": [1, 1, 1, 1]}
    monkeypatch.setitem(keras_hub_encoders.SMALLEST, "MiTBackbone", smallest)
    with pytest.raises(ConfigError, match=f"^--encoder={name}: .*{REFUSED[name]}") as error:
        encoders.build_encoder(name, image_size=SIZE)
    assert "\n" not in str(error.value)


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(
        ConfigError, match=r"^--encoder=hub:x: keras-hub cannot be imported; pip install -e '.\[hub\]' \("
    ):
        encoders.build_encoder("hub:x", image_size=SIZE)


def test_a_class_has_no_pretrained_weights():
    with pytest.raises(ConfigError, match="--encoder_weights=imagenet: must be none or a file with --encoder=hub:ViTB"):
        ModelConfig(encoder="hub:ViTBackbone")
    assert ModelConfig(encoder="hub:mit_b0_ade20k_512").input_scaling == "encoder"
    with pytest.raises(ConfigError, match=r"--encoder=hub:: must be one of mobilenet_v2, .*, hub:PRESET, or FILE.py"):
        ModelConfig(encoder="hub:")
