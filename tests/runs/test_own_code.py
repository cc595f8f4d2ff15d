"""Code of the user behind flags: what it may return, what is refused, and that runs keep their promises with it."""

import json
import shutil
import sys

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import two_convolutions
from conftest import changed

import petseg
from petseg import custom_code
from petseg.classes import PETS
from petseg.config import AugmentationConfig, LossConfig, ModelConfig, OptimizerConfig
from petseg.config.eval_config import ScoreConfig
from petseg.errors import CheckpointError, ConfigError, ExportError, WorkDirectoryError
from petseg.evaluation import metrics
from petseg.models import decoders, encoders
from petseg.runs import building, packed_run, train
from petseg.runs.packed_run import PackedRun
from petseg.runs.trained_run import TrainedRun
from petseg.runs.work_directory import WorkDirectory
from petseg.training import augmentation, learning_rates, losses, sample_weights
from petseg.training.stop_requests import StopRequests
from petseg.training.trainer import Trainer

CODE = """
import json
import keras
import numpy as np
import tensorflow as tf

def loss(labels, logits, weights):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)

def weight_map(masks):
    return tf.where(masks[..., 0] == 0, 2.0, 1.0)

def schedule(step, steps):
    return tf.cast(steps - step, tf.float32) / steps

def augment(images, masks, seeds):
    noise = tf.map_fn(lambda seed: tf.random.stateless_uniform(images.shape[1:], seed, 0.0, 9.0), seeds, tf.float32)
    return images + noise, masks

def scores(matrix, classes):
    return {"kappa": 0.5, "found": np.diag(matrix) / 2.0, "names": float(len(classes.names))}

def decoder(taps, batch_norm):
    x = keras.layers.Resizing(*taps.skips[0].shape[1:3])(taps.bottleneck)
    return keras.layers.Concatenate()([x, taps.skips[0]])

def encoder(image_size, channels):
    x = images = keras.Input([*image_size, channels])
    maps = []
    for filters in (4, 4, 8, 8, 8):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
        maps.append(x)
    return keras.Model(images, maps)

def after_evaluation(step, results, workdir):
    with open(workdir / "evaluations.txt", "a") as file:
        print(step, results["kappa"], file=file)

def every_summary(step, scalars, workdir):
    with open(workdir / "summaries.txt", "a") as file:
        print(step, json.dumps(sorted(scalars)), file=file)
    with open(__file__, "a") as file:  # an edit during the run
        print("scores = after_evaluation = every_summary = lambda *arguments: 1 / 0", file=file)
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(CODE)
    return file


def everything(config, file):
    return config.changed(
        loss={"loss": f"{file}:loss"},
        model={"encoder": f"{file}:encoder", "decoder": f"{file}:decoder", "encoder_alpha": 1.0},
        optimizer={"learning_rate_schedule": f"{file}:schedule"},
        augmentation={"augment": f"{file}:augment", "flip": 0.5},
        extension={
            name: f"{file}:{name}" for name in ("weight_map", "scores", "after_evaluation", "every_summary")
        },
    )  # fmt: skip


def test_a_run_with_custom_code_everywhere_trains_resumes_and_is_scored(tiny_config, own, tmp_path, capsys):
    config = everything(tiny_config, own)
    results = train.train(config)
    assert own.read_text() != CODE
    own.write_text(CODE)
    assert " --checkpoint=best --allow_code\n" in capsys.readouterr().out
    assert results["kappa"] == 0.5
    assert set(results["found"]) == set(PETS.names)
    workdir = WorkDirectory(config.runtime.workdir)
    assert (workdir.path / "evaluations.txt").read_text() == "4 0.5\n"
    assert [line.split()[0] for line in (workdir.path / "summaries.txt").read_text().splitlines()] == ["2", "4"]
    assert len(json.loads(workdir.config_file.read_text())["code_sha256"]) == 9
    with pytest.raises(ConfigError, match=r"its (encoder|loss) is the code .*; --allow_code must be given to run it"):
        petseg.load(workdir.path)
    network = petseg.load(workdir.path, allow_code=True)
    own.write_text("1 / 0")  # what was loaded stays
    assert network.evaluate("test", eval_examples=2)["names"] == 3.0
    own.write_text(CODE)
    with pytest.raises(ExportError, match=r"its encoder is the code .*:encoder, which the file cannot hold"):
        packed_run.pack(tmp_path / "x.safetensors", network.model, network.config, PETS, {"step": 4, "weights": "x"})
    own.write_text(CODE + "# other\n")
    with pytest.raises(WorkDirectoryError, match=r"its file has changed since the run in .* began"):
        train.train(changed(config, "schedule", train_steps=6))
    with pytest.raises(WorkDirectoryError, match=r"its file has changed since the run in .* began"):
        TrainedRun.open(workdir, ScoreConfig(workdir=str(workdir.path), allow_code=True))


def test_code_that_is_edited_while_a_run_is_set_up_is_refused(tiny_config, tmp_path, monkeypatch):
    file = shutil.copy(two_convolutions.__file__, tmp_path)
    config = tiny_config.changed(model=vars(ModelConfig(network=f"{file}:build")))
    load_splits = building.load_splits

    def edits_code(data):
        with open(file, "a") as code:
            code.write("# other\n")
        return load_splits(data)

    monkeypatch.setattr(building, "load_splits", edits_code)
    with pytest.raises(ConfigError, match=r"^--network=.*:build: its file was changed while the run was set up; rerun"):
        train.train(config)
    assert not WorkDirectory(config.runtime.workdir).path.exists()


def own_cross_entropy(labels, logits, weights):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


@pytest.mark.slow
def test_a_loss_as_a_python_object_gives_the_bits_of_the_same_built_in_loss(small_config, tmp_path):
    built_in = petseg.train(small_config)
    config = changed(small_config, "runtime", workdir=str(tmp_path / "own"))
    mine = petseg.train(config, loss=own_cross_entropy)
    ours, theirs = (tf.train.load_checkpoint(f"{run.workdir}/checkpoints/ckpt-4") for run in (mine, built_in))
    for name in theirs.get_variable_to_shape_map().keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH"}:
        np.testing.assert_array_equal(ours.get_tensor(name), theirs.get_tensor(name))
    with pytest.raises(ConfigError, match=r"must be a function or class at the top level of a module"):
        petseg.train(config, loss=lambda labels, logits, weights: logits)
    with pytest.raises(ConfigError, match=r"seed=.*: must be one of .*loss.*, which take code"):
        petseg.train(config, seed=own_cross_entropy)


def image_losses(labels, logits, weights):
    return losses.soft_dice(labels, logits, weights)


def pair(labels, logits, weights):
    per_pixel = own_cross_entropy(labels, logits, weights)
    return tf.reduce_sum(per_pixel * weights), tf.reduce_sum(weights)


@pytest.mark.parametrize(("function", "equal_to"), [
    (own_cross_entropy, {}), (pair, {"loss_normalization": "weights"}), (image_losses, {"loss": "dice"}),
])  # fmt: skip
def test_losses_per_pixel_per_image_and_as_pairs_are_normalised_like_built_in_ones(function, equal_to):
    masks = tf.constant(np.random.default_rng(0).choice([0, 1, 2, 255], [2, 8, 8]), tf.int32)
    valid = masks != 255
    weights = tf.cast(valid, tf.float32) * tf.random.stateless_uniform([2, 8, 8], [0, 1])
    logits = tf.random.stateless_normal([2, 8, 8, 3], [0, 2])
    mine = losses.Loss(
        LossConfig(
            loss=f"{__name__}:{function.__name__}", loss_normalization=equal_to.get("loss_normalization", "pixels")
        )
    )
    theirs = losses.Loss(LossConfig(**equal_to))
    np.testing.assert_allclose(*(each.sums(masks, logits, weights, valid) for each in (mine, theirs)), rtol=1e-6)
    mine.check(3, (32, 32))


LOSS_ERRORS = {
    "def f(labels, logits): return logits": "failed: ",
    "def f(labels, logits, weights): return 1 / 0": "failed: ZeroDivisionError: division by zero (line 3)",
    "def f(labels, logits, weights): return tf.reduce_mean(logits)": "returned float32 []; must be float32 [B, H, W]",
    "def f(labels, logits, weights): return np.zeros(labels.shape, np.float32)": "returned numpy float32 [2, 32, 32]",
    "def f(labels, logits, weights): return logits": "returned float32 [2, 32, 32, 3]; must be",
    "def f(labels, logits, weights): return tf.cast(logits[..., 0], tf.float16)": "returned float16 [2, 32, 32]; must",
    "def f(labels, logits, weights): return tf.reduce_sum(logits), 3": "returned (float32 [], int)",
    "def f(labels, logits, weights): return weights": "does not depend on the logits; must have a gradient",
    "def f(labels, logits, weights): return tf.math.log(logits[..., 0] - 1e9)": "all must be finite",
    "def g(labels, logits, weights): return weights": "there is no function f in ",
    "import no_such_module": "cannot be imported: ModuleNotFoundError: No module named 'no_such_module' (line 3)",
    "f = 3": "there is no function f in ",
}


@pytest.mark.parametrize("code", LOSS_ERRORS)
def test_losses_that_cannot_be_used_are_refused_in_one_line(tmp_path, code):
    (tmp_path / "own.py").write_text(f"import numpy as np\nimport tensorflow as tf\n{code}\n")
    with pytest.raises(ConfigError) as error:
        losses.Loss(LossConfig(loss=f"{tmp_path}/own.py:f")).check(3, (32, 32))
    assert f"--loss={tmp_path}/own.py:f: " in str(error.value)
    assert LOSS_ERRORS[code] in str(error.value)
    assert "\n" not in str(error.value)


def two_numbers(step, steps):
    return [step, steps]


def decides_in_python(step, steps):
    return 1.0 if step < 5 else 0.1


def falling(step, steps):
    return 1 - step / steps


def negative(step, steps):
    return tf.constant(-1.0)


def wide(masks):
    return tf.ones(masks.shape)


def map_that_decides_in_python(masks):
    weights = tf.ones(masks.shape[:3])
    return 2 * weights if tf.reduce_any(masks == 1) else weights


def negative_map(masks):
    return -tf.ones(masks.shape[:3])


def list_of_scores(matrix, classes):
    return [1.0]


def a_matrix(matrix, classes):
    return {"hits": matrix}


class WithoutArguments(Trainer):
    def __init__(self):
        pass


def trainer_of(name):
    config = petseg.Config().changed(extension={"step": f"{__name__}:{name}"})
    model = two_convolutions.build((32, 32), 3, 3)
    return building.build_trainer(config, tf.distribute.get_strategy(), model, None, 9, StopRequests())


def spaced(matrix, classes):
    return {"my score": 1.0}


def bad_augment(images, masks, seeds):
    return images[:, ::2], masks


def no_maps(image_size, channels):
    return keras.Sequential([keras.Input([*image_size, channels]), keras.layers.Conv2D(3, 1)])


def full_size(taps, batch_norm):
    return taps.image


def schedule_of(name):
    config = OptimizerConfig(learning_rate_schedule=f"{__name__}:{name}")
    return learning_rates.learning_rate_schedule(config, 9)


def augmentation_of(batch_size, reference):
    return augmentation.build_augmentation(AugmentationConfig(augment=reference), seed=0, batch_size=batch_size)


REFUSED = {
    "a schedule of two numbers": (
        lambda: schedule_of("two_numbers"),
        "is [0. 9.] at step 0 of 9; must be one finite number",
    ),
    "a schedule that decides in Python": (
        lambda: schedule_of("decides_in_python"),
        "failed: decides by a tensor with Python's `if`; must use tf.where or tf.cond",
    ),
    "a weight map that decides in Python": (
        lambda: sample_weights.check_factor(f"{__name__}:map_that_decides_in_python", 3, (32, 32)),
        "failed: decides by a tensor with Python's `if`",
    ),
    "a negative schedule": (
        lambda: schedule_of("negative"),
        "must be one finite number of at least 0",
    ),
    "a map with channels": (
        lambda: sample_weights.check_factor(f"{__name__}:wide", 3, (32, 32)),
        "returned float32 [2, 32, 32, 1]; must be float32 [2, 32, 32]",
    ),
    "a negative map": (
        lambda: sample_weights.check_factor(f"{__name__}:negative_map", 3, (32, 32)),
        "returned weights below 0 or not finite; must be at least 0",
    ),
    "scores in a list": (
        lambda: metrics.own(f"{__name__}:list_of_scores")(np.eye(3, dtype=np.int64), PETS),
        "returned [1.0]; must be a dictionary",
    ),
    "a matrix as a score": (
        lambda: metrics.own(f"{__name__}:a_matrix")(np.eye(3, dtype=np.int64), PETS),
        "returned hits: array([[1, 0, 0], [0, 1, 0], [0, 0, 1]]); must be a dictionary",
    ),
    "a custom trainer without arguments": (
        lambda: trainer_of("WithoutArguments"),
        "--step=test_own_code:WithoutArguments: failed: TypeError: WithoutArguments.__init__() takes 1 positional",
    ),
    "a score with a space": (
        lambda: metrics.own(f"{__name__}:spaced")(np.eye(3, dtype=np.int64), PETS),
        "returned my score: 1.0; must be a dictionary",
    ),
    "an augmentation that changes the size": (
        lambda: augmentation_of(2, f"{__name__}:bad_augment")(
            tf.zeros([2, 8, 8, 3]), tf.zeros([2, 8, 8, 1], tf.uint8), tf.constant(0, tf.int64), tf.constant([0, 1])
        ),
        "returned float32 [2, 4, 8, 3]; uint8 [2, 8, 8, 1]; must be images and masks, float32 [2, 8, 8, 3]",
    ),
    "a hook without the scores": (
        lambda: custom_code.check_arity("after_evaluation", f"{__name__}:negative", 3),
        "must take 3 arguments: too many positional arguments",
    ),
    "an augmentation, before images are there": (
        lambda: augmentation.check_own_augmentation(f"{__name__}:bad_augment", [2, 8, 8, 3]),
        "returned float32 [2, 4, 8, 3]; uint8 [2, 8, 8, 1]; must be images and masks, float32 [2, 8, 8, 3]",
    ),
    "an encoder without maps": (
        lambda: encoders.build_encoder(f"{__name__}:no_maps", image_size=(32, 32)),
        "its maps of (32, 32) pixels are [(32, 32)]; must be [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]",
    ),
    "a decoder at full size": (
        lambda: decoders.decode(f"{__name__}:full_size", taps(), {}),
        "returned (None, 32, 32); must be a Keras tensor (None, 16, 16) with any channels",
    ),
}  # fmt: skip


def taps():
    images = keras.Input([32, 32, 3])
    *skips, bottleneck = encoders.build_encoder("tiny", image_size=(32, 32))(images)
    return decoders.Taps(images, skips, bottleneck, [False] * 4)


def test_a_custom_schedule_may_return_any_number():
    assert schedule_of("falling")(tf.constant(6, tf.int64)).numpy() == pytest.approx(1e-3 * (1 - 6 / 9))


@pytest.mark.parametrize("case", REFUSED)
def test_code_that_returns_something_else_is_refused_in_one_line(case):
    attempt, message = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        attempt()
    assert str(error.value).startswith("--")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_code_in_the_metadata_of_packed_weights_is_not_run(tiny_config, tmp_path, own):
    config = changed(tiny_config, "loss", loss=f"{own}:loss")
    record = {"format": 3, "config": petseg.config.to_dict(config), "classes": PETS.to_dict()}
    record["card"] = {"step": 1, "weights": "trained"}
    file = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(1)}, file, metadata={"petseg": json.dumps(record)})
    with pytest.raises(CheckpointError, match=r"its metadata names the loss .*own\.py:loss, which is Python code"):
        PackedRun.open(file)
    assert not [module for module in sys.modules.values() if getattr(module, "__file__", None) == str(own)]


def test_a_custom_augmentation_is_the_same_on_any_number_of_replicas(own):
    images, masks = tf.zeros([4, 8, 8, 3]), tf.zeros([4, 8, 8, 1], tf.uint8)
    augment = augmentation_of(4, f"{own}:augment")
    step = tf.constant(3, tf.int64)
    whole, _ = augment(images, masks, step, tf.range(4, dtype=tf.int64))
    part, _ = augment(images[2:], masks[2:], step, tf.range(2, 4, dtype=tf.int64))
    np.testing.assert_array_equal(whole[2:], part)
    assert (whole[0] != whole[1]).numpy().any()
