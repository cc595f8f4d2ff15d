"""Exports that take images of any number, height and width, and those that keep the size of their network."""

import re

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from petseg.classes import PETS
from petseg.deployment import export, export_formats
from petseg.deployment.onnx_runner import OnnxRunner
from petseg.deployment.predictor import Predictor
from petseg.models import encoders, unet
from petseg.models.batch_norm_calibration import calibrate_batch_norm

FORMATS = ("saved_model", "onnx")


def images(count, height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3))
    return tf.image.resize(small, (height, width)).numpy().astype(np.uint8)


def network(size, *, decoder="lighter", inner=None):
    keras.utils.set_random_seed(0)
    backbone = encoders.build_encoder("tiny", image_size=inner or size, alpha=0.35)
    model = unet.build_unet(
        image_size=size,
        num_classes=3,
        encoder=backbone,
        train_encoder=False,
        input_scaling="unit",
        decoder=decoder,
    )
    noise = tf.random.stateless_uniform([16, *(inner or size), 3], seed=[0, 0])
    calibrate_batch_norm(model.get_layer("encoder").model, noise)
    return model


def exported(model, folder, formats=FORMATS):
    examples = images(4, *model.input_shape[1:3])
    return export.export(model, formats, str(folder), examples, calibration=None, card={})


def readers(folder):
    """Images -> probabilities by each runtime, and the shapes that it says of its input."""
    served = tf.saved_model.load(str(folder / "saved_model")).signatures["serving_default"]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return [
        (lambda x: served(image=tf.constant(x))["probabilities"].numpy(),
         served.structured_input_signature[1]["image"].shape.as_list()),
        (lambda x: session.run(["probabilities"], {"image": x})[0], session.get_inputs()[0].shape),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["lighter", "pix2pix", "deeplab_v3plus"])
def test_runtimes_agree_with_networks_that_are_built_for_another_size(tmp_path, decoder):
    model = network((64, 96), decoder=decoder)
    agreements = exported(model, tmp_path)
    assert [(agreement.format, agreement.any_size) for agreement in agreements] == [(name, True) for name in FORMATS]
    (read, signature), (run, dimensions) = readers(tmp_path)
    assert (signature, dimensions) == ([None, None, None, 3], ["batch", "height", "width", 3])
    for count, *size in ((1, 64, 96), (3, 96, 64), (2, 32, 160)):
        if decoder != "deeplab_v3plus":  # whose dilation rates depend on the size it is built for
            built = network(tuple(size), decoder=decoder)
            built.set_weights(model.get_weights())
            expected = tf.nn.softmax(built(images(count, *size).astype(np.float32), training=False))
            np.testing.assert_allclose(read(images(count, *size)), expected, atol=1e-5)
        np.testing.assert_allclose(run(images(count, *size)), read(images(count, *size)), atol=1e-4)


@pytest.mark.slow
def test_onnx_runtime_predicts_at_the_size_of_training_as_with_a_file_of_that_size(tmp_path):
    model = network((32, 64))
    exported(model, tmp_path, ["onnx"])
    export.write_onnx(model, tmp_path / "fixed.onnx")
    free, fixed = OnnxRunner(tmp_path / "model.onnx"), OnnxRunner(tmp_path / "fixed.onnx")
    assert free.size == fixed.size == (32, 64)
    assert fixed._session.get_inputs()[0].shape == ["batch", 32, 64, 3]
    (image,) = images(1, 90, 70)
    masks = [Predictor(tmp_path / name, PETS)(image).mask for name in ("model.onnx", "fixed.onnx")]
    np.testing.assert_array_equal(*masks)


def with_flatten():
    inputs = keras.Input([32, 64, 3])
    x = keras.layers.Conv2D(4, 32, strides=32)(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Dense(32 * 64 * 3)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Reshape([32, 64, 3])(x))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: network((32, 64), inner=(64, 96)), r"of images of \(64, 128\) pixels it makes masks of \(32, 64\)"),
        (with_flatten, "dense"),
    ],
)
def test_networks_of_one_size_have_exports_of_that_size_and_one_line_says_so(tmp_path, caplog, make, reason):
    caplog.set_level("INFO")
    model = make()
    assert [agreement.any_size for agreement in exported(model, tmp_path)] == [False, False]
    (said,) = (record.getMessage() for record in caplog.records if "only:" in record.getMessage())
    assert said.startswith("the network takes images of 32 x 64 pixels only: ")
    assert "\n" not in said
    assert re.search(reason, said)
    expected = tf.nn.softmax(model(images(3, 32, 64).astype(np.float32), training=False))
    for (read, shape), batch in zip(readers(tmp_path), (None, "batch"), strict=True):
        assert shape == [batch, 32, 64, 3]
        np.testing.assert_allclose(read(images(3, 32, 64)), expected, atol=1e-5)


def test_a_format_that_cannot_be_written_or_read_for_any_size_keeps_one(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    original = export_formats.FORMATS["saved_model"]

    def fails(layer, path, context):
        original.write(layer, path, context)
        if context.any_size:
            raise RuntimeError("not today\nand not tomorrow")

    monkeypatch.setitem(export.FORMATS, "saved_model", original._replace(write=fails))
    (agreement,) = exported(network((32, 64)), tmp_path, ["saved_model"])
    assert not agreement.any_size
    assert "--export=saved_model takes images of 32 x 64 pixels only: RuntimeError: not today and not" in caplog.text
