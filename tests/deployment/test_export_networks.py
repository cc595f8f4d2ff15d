"""Exports of networks other than the tutorial's."""

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg.config.eval_config import EXPORT_FORMATS
from petseg.deployment import export
from petseg.errors import ExportError
from petseg.models import encoders, unet

MODULES = {
    "tflite": ("ai_edge_litert",),
    "tflite_int8": ("ai_edge_litert",),
    "onnx": ("tf2onnx", "onnxruntime"),
    "onnx_half": ("tf2onnx",),
}


@pytest.mark.slow
def test_the_light_decoder_and_resizing_inside_say_the_same_in_every_format(tmp_path):
    keras.utils.set_random_seed(0)
    formats = [
        name
        for name in EXPORT_FORMATS
        if name != "weights" and all(map(importlib.util.find_spec, MODULES.get(name, ())))
    ]
    encoder = encoders.build_encoder("tiny", image_size=(64, 96))
    model = unet.build_unet(
        image_size=(32, 64), num_classes=2, encoder=encoder, train_encoder=True, input_scaling="unit", decoder="light"
    )
    encoders.calibrate_batch_norm(encoder, tf.random.stateless_uniform([16, 64, 96, 3], seed=[0, 0]))
    kernel = model.get_layer("logits").kernel
    kernel.assign(4 * kernel)
    small = tf.random.stateless_uniform([20, 4, 4, 3], [0, 1], 0, 255)
    images = tf.cast(tf.image.resize(small, [32, 64]), tf.uint8).numpy()
    agreements = export.export(model, formats, str(tmp_path), images, calibration=images, card={})
    assert [agreement.format for agreement in agreements] == formats
    for agreement in agreements:
        assert agreement.mask_agreement >= (0.97 if agreement.format == "tflite_int8" else 0.999)
        assert agreement.format in ("tflite_int8", "onnx_half") or agreement.largest_difference < 1e-3


def test_a_network_with_layers_that_keras_cannot_copy_says_what_they_need(tmp_path):
    class Unknown(keras.layers.Layer):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def call(self, x):
            return self.function(x)

    images = keras.Input([32, 32, 3])
    model = keras.Model(images, Unknown(lambda x: x)(images))
    examples = np.zeros([1, 32, 32, 3], np.uint8)
    with pytest.raises(
        ExportError, match="its own layers must have a get_config, and be decorated with @keras"
    ) as caught:
        export.export(model, ["keras"], str(tmp_path), examples, calibration=None, card={})
    assert "\n" not in str(caught.value)
