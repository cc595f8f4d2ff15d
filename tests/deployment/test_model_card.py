"""The model card of a network that is not square."""

import importlib.util
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg.deployment import export
from petseg.models import encoders, inference, unet
from petseg.models.batch_norm_calibration import calibrate_batch_norm


@pytest.mark.slow
def test_the_card_describes_input_size_and_resizing(tmp_path):
    encoder = encoders.build_encoder("tiny", image_size=(32, 64))
    model = unet.build_unet(
        image_size=(32, 64), num_classes=5, encoder=encoder, train_encoder=False, input_scaling="unit"
    )
    calibrate_batch_norm(encoder, tf.random.stateless_uniform([16, 32, 64, 3], seed=[0, 0]))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3), np.uint8)
    formats = ["keras", *(["tflite"] if importlib.util.find_spec("ai_edge_litert") else [])]
    found = export.export(model, formats, str(tmp_path), images, calibration=None, card={}, resize="letterbox")
    assert [(each.format, each.mask_agreement > 0.999) for each in found] == [(name, True) for name in formats]
    card = json.loads((tmp_path / "model_card.json").read_text())
    assert card["input"]["shape"] == ["batch", 32, 64, 3]
    assert "aspect ratio kept, to the largest size that fits 32 x 64 (height x width)" in card["input"]["content"]
    assert [each["shape"] for each in card["outputs"]] == [["batch", 32, 64, 5], ["batch", 32, 64]]
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded(images)["probabilities"], tf.nn.softmax(inference.logits(model, images)), atol=1e-5
    )
