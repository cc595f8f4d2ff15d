"""Custom networks: what they may return, what is refused, and that the package works with them."""

import keras
import pytest
import tensorflow as tf

from petseg import custom_code
from petseg.config import ModelConfig, OptimizerConfig
from petseg.errors import ConfigError
from petseg.models import custom_network, encoders, unet
from petseg.reporting import model_diagram
from petseg.training import optimizers
from petseg.training.variables import moving_statistics

WITHOUT_NORMS = """
import keras

def build(image_size, num_classes, channels):
    images = keras.Input([*image_size, channels])
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, keras.layers.Conv2D(num_classes, 1, dtype="float32")(x))
"""
WITH_NORMS_INSIDE = """
import keras

@keras.saving.register_keras_serializable("own")
class Block(keras.layers.Layer):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.convolution = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.norm = keras.layers.BatchNormalization(momentum=0.5)

    def call(self, x, training=None):
        return keras.ops.relu(self.norm(self.convolution(x), training=training))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}

def build(image_size, num_classes, channels):
    images = keras.Input([*image_size, channels])
    block = Block(4)
    x = block(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, keras.layers.Conv2D(num_classes, 1, dtype="float32")(x)), {0.1: [block]}
"""


WITH_NORMS_IN_A_LIST = """
import keras

class Block(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.steps = []
        for _ in range(2):
            self.steps.append(keras.layers.Conv2D(4, 3, padding="same"))
            self.steps.append(keras.layers.BatchNormalization())

    def call(self, x, training=None):
        for step in self.steps:
            x = step(x, training=training) if isinstance(step, keras.layers.BatchNormalization) else step(x)
        return x

def build(image_size, num_classes, channels):
    images = keras.Input([*image_size, channels])
    return keras.Model(images, keras.layers.Conv2D(num_classes, 1, dtype="float32")(Block()(images)))
"""


def network(folder, code, function="build"):
    (folder / "own.py").write_text(code)
    return f"{folder}/own.py:{function}"


def build(name, sync_batch_norm=True):
    return custom_network.build(name, image_size=(16, 24), num_classes=5, sync_batch_norm=sync_batch_norm)


@pytest.mark.parametrize("synchronized", [False, True])
def test_batch_norms_inside_a_layer_are_found_and_follow_the_flag(tmp_path, synchronized):
    model = build(network(tmp_path, WITH_NORMS_INSIDE), synchronized)
    (norm,) = (x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization))
    assert norm.synchronized == synchronized
    assert {id(v) for v in moving_statistics(model)} == {id(norm.moving_mean), id(norm.moving_variance)}


def test_checkpoints_hold_the_weights_of_layers_in_a_list_that_grows(tmp_path):
    name = network(tmp_path, WITH_NORMS_IN_A_LIST)
    model, other = build(name), build(name)
    for index, weight in enumerate(model.weights):
        weight.assign(tf.fill(weight.shape, float(index)))
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=other).read(path).assert_consumed()
    assert len(other.weights) == 14
    for index, weight in enumerate(other.weights):
        assert float(tf.reduce_max(weight.value)) == index


DECODER_IN_A_LIST = """
import keras

class Block(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.steps = []
        self.steps.append(keras.layers.BatchNormalization())

    def call(self, x, training=None):
        return self.steps[0](x, training=training)

def decode(taps, batch_norm):
    return Block()(taps.skips[0])
"""


def test_checkpoints_hold_the_statistics_of_a_custom_decoder_whose_layers_are_in_a_list_that_grows(tmp_path):
    (tmp_path / "own.py").write_text(DECODER_IN_A_LIST)
    own = f"{tmp_path}/own.py:decode"
    tiny = [encoders.build_encoder("tiny", image_size=(32, 32)) for _ in range(2)]
    options = {"image_size": (32, 32), "num_classes": 3, "train_encoder": True, "input_scaling": "unit"}
    model, other = (unet.build_unet(encoder=each, decoder=own, **options) for each in tiny)
    for statistic in moving_statistics(model):
        statistic.assign(tf.fill(statistic.shape, 7.0))
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=other).read(path).assert_consumed()
    assert len(moving_statistics(other)) == 2
    for statistic in moving_statistics(other):
        assert float(tf.reduce_min(statistic)) == 7


def test_layers_learn_at_the_rates_that_the_function_gives_them(tmp_path):
    model = build(network(tmp_path, WITH_NORMS_INSIDE))
    optimizer = optimizers.build_optimizer(OptimizerConfig(optimizer="sgd", momentum=0.0, learning_rate=1.0), model, 10)
    assert len(optimizer.weights) == len(model.trainable_variables)
    before = [weight.numpy() for weight in optimizer.weights]
    optimizer.set_learning_rates(tf.constant(0, tf.int64))
    optimizer.apply(optimizer.join([tf.ones(weight.shape) for weight in optimizer.weights]))
    of_block = {id(weight) for weight in model.layers[2].trainable_variables}
    assert len(of_block) == 3
    for old, weight in zip(before, optimizer.weights, strict=True):
        assert (old - weight.numpy()).max() == pytest.approx(0.1 if id(weight) in of_block else 1.0, rel=1e-5)


def test_custom_networks_have_no_model_diagram(tmp_path):
    model = build(network(tmp_path, WITHOUT_NORMS))
    assert model_diagram.draw(model) is None
    assert not moving_statistics(model)


def test_a_function_in_a_module_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "networks_of_mine.py").write_text(WITHOUT_NORMS)
    monkeypatch.syspath_prepend(tmp_path)
    assert build("networks_of_mine:build").output_shape == (None, 16, 24, 5)
    assert len(custom_code.fingerprint("network", "networks_of_mine:build")) == 64


@pytest.mark.parametrize(
    ("code", "function", "message"),
    [
        ("import nowhere", "build", "cannot be imported: .*nowhere"),
        (WITHOUT_NORMS, "other", "there is no function other in .*own.py"),
        ("def build(*_): raise KeyError('x')", "build", "failed: .*KeyError"),
        ("def build(*_): return 3", "build", "returned int; must be a functional Keras model"),
        (
            WITHOUT_NORMS.replace("Conv2D(num_classes,", "Conv2D(7,"),
            "build",
            r".* are .*24, 7\), 'float32'\); must be .*24, 5\)",
        ),
        (WITHOUT_NORMS.replace('"float32"', '"float16"'), "build", ".*'float16'.; must be .*'float32'"),
        (
            WITH_NORMS_INSIDE.replace("0.1: [", "-1: ["),
            "build",
            "learning-rate factor -1: must be a number of at least",
        ),
        (
            WITHOUT_NORMS.replace("Model(", "Model(trainable=False, inputs=").replace(
                "images, keras.layers", "images, outputs=keras.layers"
            ),
            "build",
            "its model has no weights to train",
        ),
        (WITH_NORMS_INSIDE.replace("[block]", "[Block(3)]"), "build", ".*: must be a layer of the model"),
    ],
)
def test_unusable_networks_are_refused_in_one_line(tmp_path, code, function, message):
    with pytest.raises(ConfigError, match=f"--network=.*own.py:{function}: {message}") as caught:
        build(network(tmp_path, code, function))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "missing"), [("/gone.py:build", "file /gone.py"), ("gone.away:build", "module")])
def test_missing_files_and_modules_are_named(name, missing):
    with pytest.raises(ConfigError, match=f"--network={name}: there is no {missing}"):
        custom_code.fingerprint("network", name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"network": "own.py"}, r"must be FILE.py:function or package.module:function"),
        ({"network": "own.py:build", "train_encoder": True}, "--train_encoder=True: must not be given with --network"),
        (
            {"network": "own.py:build", "decoder": "light", "train_encoder": True, "input_scaling": "symmetric"},
            "--train_encoder=True, --decoder=light, --input_scaling=symmetric: must not be given with --network, .* "
            "--train_encoder=false --decoder=pix2pix --input_scaling=$",
        ),
    ],
)
def test_encoder_and_decoder_flags_are_refused_with_network(flags, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**flags)
