"""Whole runs of a network of one's own, and of what is taken over from another network."""

import keras
import numpy as np
import pytest
from conftest import changed

from petseg.config import ModelConfig
from petseg.config.eval_config import ScoreConfig
from petseg.errors import ConfigError, WorkDirectoryError
from petseg.models import encoders, unet
from petseg.runs import experiment, starting_point
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
def test_a_run_of_ones_own_network_on_two_replicas_goes_on_with_the_same_code_only(tiny_config, tmp_path):
    (tmp_path / "own.py").write_text(CODE)
    model = ModelConfig(network=f"{tmp_path}/own.py:build")
    config = tiny_config.changed(
        distribution={"strategy": "mirrored", "virtual_devices": 4}, optimizer={"ema_decay": 0.5}, model=vars(model)
    )
    assert experiment.train(config)["step"] == 4
    longer = changed(config, "schedule", train_steps=6)
    assert experiment.train(longer)["step"] == 6
    workdir = WorkDirectory(config.runtime.workdir)
    with pytest.raises(ConfigError, match=r"its network is the code .*own\.py:build; --allow_code must be given"):
        TrainedRun.open(workdir, ScoreConfig(workdir=str(workdir.path)))
    run = TrainedRun.open(workdir, ScoreConfig(workdir=str(workdir.path), allow_code=True, ema=True))
    assert run.restore(run.checkpoint("latest"), run.build_model()) == 6
    (tmp_path / "own.py").write_text(CODE + "# other\n")
    for attempt in (
        lambda: experiment.train(longer),
        lambda: TrainedRun.open(workdir, ScoreConfig(workdir=str(workdir.path), allow_code=True)),
    ):
        with pytest.raises(WorkDirectoryError, match=r"own\.py has changed since the run in .* began"):
            attempt()


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
def test_weights_that_fit_are_taken_over_and_the_others_named(classes, decoder, left):
    original, model = build(3, "light"), build(classes, decoder)
    for weight in original.weights:
        weight.assign(np.full(weight.shape, 7.0, np.float32))
    names = starting_point.take_over(original, model, same_layers=decoder == "light")
    assert len(names) == left
    assert left != 2 or names == ["logits/kernel", "logits/bias"]
    taken = [weight for weight in model.weights if weight.path not in names]
    assert len(taken) == len(model.weights) - left
    assert all((weight.numpy() == 7).all() for weight in taken)
    assert all((weight.numpy() != 7).all() for weight in model.weights if weight.path in names)
    assert isinstance(model, keras.Model)
