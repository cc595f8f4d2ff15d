"""Exports of networks other than the tutorial's."""

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg.classes import PETS
from petseg.config import ModelConfig
from petseg.config.eval_config import EXPORT_FORMATS, EvalConfig, ScoreConfig
from petseg.deployment import export, export_command
from petseg.errors import ExportError
from petseg.models import encoders, unet
from petseg.models.batch_norm_calibration import calibrate_batch_norm
from petseg.runs import building
from petseg.runs.checkpoints import Checkpoints
from petseg.runs.work_directory import WorkDirectory

MODULES = {
    "tflite": ("ai_edge_litert",),
    "tflite_int8": ("ai_edge_litert",),
    "onnx": ("tf2onnx", "onnxruntime"),
    "onnx_half": ("tf2onnx",),
}


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["light", "deeplab_v3plus", "fpn", "segformer"])
def test_decoders_and_resizing_inside_say_the_same_in_every_format(tmp_path, decoder):
    keras.utils.set_random_seed(0)
    formats = [
        name
        for name in EXPORT_FORMATS
        if name in (EXPORT_FORMATS if decoder == "light" else ("saved_model", "tflite", "onnx"))
        and name != "weights"
        and all(map(importlib.util.find_spec, MODULES.get(name, ())))
    ]
    encoder = encoders.build_encoder("tiny", image_size=(64, 96))
    model = unet.build_unet(
        image_size=(32, 64), num_classes=2, encoder=encoder, train_encoder=True, input_scaling="unit", decoder=decoder
    )
    calibrate_batch_norm(model.get_layer("encoder").model, tf.random.stateless_uniform([16, 64, 96, 3], seed=[0, 0]))
    kernel = model.get_layer("logits").kernel
    kernel.assign(4 * kernel)
    small = tf.random.stateless_uniform([20, 4, 4, 3], [0, 1], 0, 255)
    images = tf.cast(tf.image.resize(small, [32, 64]), tf.uint8).numpy()
    agreements = export.export(model, formats, str(tmp_path), images, calibration=images, card={})
    assert [agreement.format for agreement in agreements] == formats
    for agreement in agreements:
        assert agreement.mask_agreement >= (0.97 if agreement.format == "tflite_int8" else 0.999)
        assert agreement.format in ("tflite_int8", "onnx_half") or agreement.largest_difference < 1e-3


def test_a_network_with_layers_that_keras_cannot_copy_is_refused_with_what_they_need(tmp_path):
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


class LogGamma(keras.layers.Layer):
    def call(self, x):
        return tf.math.lgamma(x)


def test_onnx_has_grouped_convolutions_exact_gelus_scalars_and_constants_or_names_what_it_lacks(tmp_path, caplog):
    pytest.importorskip("tf2onnx")
    images = keras.Input([32, 32, 3])
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same")(keras.layers.Rescaling(1 / 255)(images))
    x = keras.layers.Activation("gelu")(keras.layers.Conv2D(8, 3, padding="same", groups=4)(x))
    x = keras.ops.relu6(keras.layers.Conv2D(8, 1)(x) + 3.0) / 6.0
    x = x + keras.layers.Embedding(1, 8)(keras.ops.convert_to_tensor(np.zeros([1, 1], np.int32)))
    features = keras.layers.UpSampling2D()(x)
    model = keras.Model(images, keras.layers.Conv2D(2, 1)(features))
    examples = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    (agreement,) = export.export(model, ["onnx"], str(tmp_path / "a"), examples, calibration=None, card={})
    assert agreement.any_size
    assert agreement.largest_difference < 1e-6
    assert "tf2onnx" not in {record.name.partition(".")[0] for record in caplog.records}
    other = keras.Model(images, keras.layers.Conv2D(2, 1)(LogGamma()(features)))
    with pytest.raises(ExportError, match=r"the network has operations that ONNX lacks: Lgamma$"):
        export.export(other, ["onnx"], str(tmp_path / "b"), examples, calibration=None, card={}, rebuild=lambda: other)


WITHOUT_GET_CONFIG = """
import keras

class Block(keras.layers.Layer):
    def __init__(self, activation):
        super().__init__()
        self.convolution = keras.layers.Conv2D(4, 3, padding="same")
        self.norm = keras.layers.BatchNormalization()
        self.activation = activation

    def call(self, x, training=None):
        return self.activation(self.norm(self.convolution(x), training=training))

def build(image_size, num_classes, channels):
    images = keras.Input([*image_size, channels])
    x = Block(lambda x: keras.ops.relu(x))(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, keras.layers.Conv2D(num_classes, 1, dtype="float32")(x))
"""


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_custom_network_is_built_again_from_its_function(tiny_config, tmp_path, precision):
    (tmp_path / "own.py").write_text(WITHOUT_GET_CONFIG)
    model = vars(ModelConfig(network=f"{tmp_path}/own.py:build"))
    config = tiny_config.changed(model=model, compute={"precision": precision})
    workdir = WorkDirectory(config.runtime.workdir)
    workdir.save_config(config, classes=PETS, class_weights=None, devices=[])
    trained = building.build_model(config, PETS)
    Checkpoints(workdir.checkpoints, keep=1, model=trained, step=tf.Variable(3, dtype=tf.int64)).save(3)

    formats = [
        "saved_model",
        *(name for name in ("onnx", "tflite") if all(map(importlib.util.find_spec, MODULES[name]))),
    ]
    score = ScoreConfig(
        workdir=str(workdir.path), export=",".join(formats), output_dir=str(tmp_path / "out"), allow_code=True
    )
    agreements = export_command.export(EvalConfig(score))
    assert [agreement.format for agreement in agreements] == formats
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    served = tf.saved_model.load(str(tmp_path / "out" / "saved_model")).signatures["serving_default"]
    expected = tf.nn.softmax(trained(images.astype(np.float32)))
    atol = 1e-5 if precision == "float32" else 0.02
    np.testing.assert_allclose(served(image=tf.constant(images))["probabilities"], expected, atol=atol)


def test_a_format_that_keras_cannot_write_is_named_and_the_others_are_made(tiny_config, tmp_path):
    (tmp_path / "own.py").write_text(WITHOUT_GET_CONFIG)
    config = tiny_config.changed(model=vars(ModelConfig(network=f"{tmp_path}/own.py:build")))
    rebuild = building.rebuild_for_export(config, PETS)
    images, formats = np.zeros([1, 32, 32, 3], np.uint8), ["keras", "saved_model"]
    with pytest.raises(ExportError, match=r"--export=keras: .*get_config") as caught:
        export.export(rebuild(), formats, str(tmp_path / "out"), images, calibration=None, card={}, rebuild=rebuild)
    assert "--export=saved_model" not in str(caught.value)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"saved_model", "model_card.json"}
