"""Runs of custom networks, and transfer of weights between networks."""

import keras
import numpy as np
import pytest
from conftest import changed, random_examples

import petseg
from petseg.classes import PETS
from petseg.config import ModelConfig
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.deployment import export_command, prediction_command
from petseg.errors import ConfigError, WorkDirectoryError
from petseg.models import encoders, unet
from petseg.runs import group_scoring, resume_or_init, scoring, train
from petseg.runs.open_trained_run import open_run
from petseg.runs.resume_or_init import StartingPoint
from petseg.runs.trained_run import TrainedRun
from petseg.runs.work_directory import WorkDirectory

CODE = """
import keras

@keras.saving.register_keras_serializable("own_run")
class Block(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution = keras.layers.Conv2D(4, 3, padding="same")
        self.norm = keras.layers.BatchNormalization(momentum=0.5)

    def call(self, x, training=None):
        return self.norm(self.convolution(x), training=training)

def build(image_size, num_classes, channels):
    images = keras.Input([*image_size, channels])
    block = Block()
    x = block(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, keras.layers.Conv2D(num_classes, 1, dtype="float32")(x)), {0.5: [block]}
"""


@pytest.mark.slow
def test_a_custom_network_trains_on_two_replicas_and_resumes_only_with_the_same_code(tiny_config, tmp_path):
    (tmp_path / "own.py").write_text(CODE)
    model = ModelConfig(network=f"{tmp_path}/own.py:build")
    config = tiny_config.changed(
        distribution={"strategy": "mirrored", "virtual_devices": 4}, optimizer={"ema_decay": 0.5}, model=vars(model)
    )
    assert train.train(config)["step"] == 4
    longer = changed(config, "schedule", train_steps=6)
    assert train.train(longer)["step"] == 6
    workdir = WorkDirectory(config.runtime.workdir)
    with pytest.raises(ConfigError, match=r"its network is the code .*own\.py:build; --allow_code must be given"):
        TrainedRun.open(workdir, ScoreConfig(workdir=str(workdir.path)))
    run = TrainedRun.open(workdir, ScoreConfig(workdir=str(workdir.path), allow_code=True, ema=True))
    assert run.restore(run.checkpoint("latest"), run.build_model()) == 6
    (tmp_path / "own.py").write_text(CODE + "# other\n")
    for attempt in (
        lambda: train.train(longer),
        lambda: TrainedRun.open(workdir, ScoreConfig(workdir=str(workdir.path), allow_code=True)),
    ):
        with pytest.raises(WorkDirectoryError, match=r"own\.py:build: its file has changed since the run in .* began"):
            attempt()


WITH_UNUSED_WEIGHTS = """
import keras

class Block(keras.layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=[1, 1, shape[-1], 4], name="kernel")
        self.unused = self.add_weight(shape=[3, 5], name="unused")
        self.stopped = self.add_weight(shape=[4], name="stopped")
        self.scales = keras.layers.Embedding(3, 4)
        self.scales.build()

    def call(self, x):
        features = keras.ops.conv(x, self.kernel, padding="same") * self.scales(keras.ops.convert_to_tensor([1]))
        return features + keras.ops.stop_gradient(self.stopped)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)

def build(image_size, num_classes, channels):
    images = keras.Input([*image_size, channels])
    x = Block(name="block")(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, keras.layers.Conv2D(num_classes, 1, dtype="float32")(x))
"""


WAYS = {
    "micro-batches": {"compute": {"micro_batches": 2}, "optimizer": {"clip_norm": 1.0}},
    "replicas": {
        "distribution": {"strategy": "mirrored", "virtual_devices": 4},
        "optimizer": {"ema_decay": 0.5},
        "schedule": {"histogram_every": 2},
    },
    "float16": {"compute": {"precision": "mixed_float16"}},
    "XLA": {"compute": {"jit_compile": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_weights_without_a_gradient_stay_and_are_logged_once(tiny_config, tmp_path, caplog, way):
    (tmp_path / "own.py").write_text(WITH_UNUSED_WEIGHTS)
    model = vars(ModelConfig(network=f"{tmp_path}/own.py:build"))
    config = tiny_config.changed(model=model, **WAYS[way])
    with caplog.at_level("WARNING", logger="petseg"):
        train.train(config)
    (warning,) = (text for text in caplog.messages if "loss does not depend" in text)
    assert warning.endswith(": block/unused, block/stopped")
    workdir = WorkDirectory(config.runtime.workdir)
    run = TrainedRun.open(workdir, ScoreConfig(workdir=str(workdir.path), allow_code=True))
    trained, first = run.build_model(), run.build_model()
    run.restore(run.path_of(4), trained)
    run.restore(run.path_of(2), first)
    moved = {
        after.path: not np.array_equal(after.numpy(), before.numpy())
        for after, before in zip(trained.weights, first.weights, strict=True)
    }
    assert not moved["block/unused"]
    assert not moved["block/stopped"]
    assert moved["block/kernel"]


@pytest.mark.parametrize("way", ["load", "score", "predict", "export", "compare", "page", "init_from"])
def test_code_named_by_a_work_directory_is_not_run(tiny_config, tmp_path, monkeypatch, way):
    was_run, out = tmp_path / "was_run", str(tmp_path / "out")
    (tmp_path / "evil_code.py").write_text(f"open({str(was_run)!r}, 'w').close()\n{CODE}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    ours, theirs = WorkDirectory(tmp_path / "ours"), WorkDirectory(tmp_path / "theirs")
    evil = tiny_config.changed(model=vars(ModelConfig(network="evil_code:build")))
    for workdir, config in ((theirs, evil), (ours, tiny_config)):
        workdir.save_config(config, classes=PETS, class_weights=None, devices=[])
    path = str(theirs.path)
    ways = {
        "load": lambda: petseg.load(path),
        "score": lambda: scoring.evaluate(EvalConfig(ScoreConfig(workdir=path))),
        "predict": lambda: prediction_command.predict(EvalConfig(ScoreConfig(workdir=path, predict=out))),
        "export": lambda: export_command.export(EvalConfig(ScoreConfig(workdir=path, export="onnx", output_dir=out))),
        "compare": lambda: group_scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(ours.path), compare=path))),
        "page": lambda: open_run(ScoreConfig(workdir=path)),
        "init_from": lambda: resume_or_init.build_initial_model(
            StartingPoint(init_from=path), changed(tiny_config, "model", init_from=path), random_examples(2)
        ),
    }
    with pytest.raises(ConfigError, match=r"evil_code:build"):
        ways[way]()
    assert not was_run.exists()


def build(num_classes, decoder):
    encoder = encoders.build_encoder("tiny", image_size=(32, 32))
    return unet.build_unet(
        image_size=(32, 32), num_classes=num_classes, encoder=encoder, train_encoder=False, input_scaling="unit",
        decoder=decoder,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "decoder", "left"),
    [(3, "light", 0), (5, "light", 2), (3, "pix2pix", 22)],  # all; kernel and bias of the logits; a whole decoder
)
def test_transfer_copies_weights_that_fit_and_names_the_others(classes, decoder, left):
    original, model = build(3, "light"), build(classes, decoder)
    for weight in original.weights:
        weight.assign(np.full(weight.shape, 7.0, np.float32))
    names = resume_or_init.transfer_weights(original, model, same_layers=decoder == "light")
    assert len(names) == left
    assert left != 2 or names == ["logits/kernel", "logits/bias"]
    taken = [weight for weight in model.weights if weight.path not in names]
    assert len(taken) == len(model.weights) - left
    assert all((weight.numpy() == 7).all() for weight in taken)
    assert all((weight.numpy() != 7).all() for weight in model.weights if weight.path in names)
    assert isinstance(model, keras.Model)
