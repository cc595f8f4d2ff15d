"""petseg.train: its return value and the process state that it restores."""

import contextlib
import gc
import json
import logging
import random
import signal
import sys

import keras
import numpy as np
import programs_in_forks
import pytest
import tensorflow as tf
from conftest import changed, small_flags, tiny_flags
from short_trainings import SMALL_NETWORK

import petseg
from petseg.config import command_line
from petseg.errors import ConfigError, StoppedError
from petseg.runs import train

FLAGS = ["--train_steps=4", "--summary_every=2"]


def graphs_and_models():
    """All that are alive, but for TensorFlow's default graph."""
    gc.collect()
    return [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), (tf.Graph, keras.Model)) and type(thing) is not tf.Graph
    ]


def first_training(data_dir, folder, **model):
    """A training with other arithmetic, another seed and another optimizer than those that follow."""
    flags = [*tiny_flags(data_dir, folder / "run"), "--train_steps=2", "--eval_every=2"]
    flags += ["--precision=mixed_bfloat16", "--seed=7", "--optimizer=adamw", "--weight_decay=0.01"]
    petseg.train(command_line.parse(["", *flags], petseg.Config).changed(model=model))


def count_what_a_training_leaves(data_dir, folder):
    """Ends the process with the number of graphs and models that are alive after a training."""
    before = graphs_and_models()
    first_training(data_dir, folder)
    earlier = {id(thing) for thing in before}
    left = [repr(thing) for thing in graphs_and_models() if id(thing) not in earlier]
    print(left)
    sys.exit(len(left))


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """The second training in this process."""
    first_training(data_dir, tmp_path_factory.mktemp("first"), **vars(SMALL_NETWORK))
    flags = [*small_flags(data_dir, tmp_path_factory.mktemp("second") / "run"), *FLAGS]
    return petseg.train(command_line.parse(["", *flags], petseg.Config))


def test_a_run_has_workdir_scores_and_history(run):
    results = json.loads((run.workdir / "results" / "test-4.json").read_text())
    assert run.scores["mean_iou"] == results["mean_iou"]
    steps = [row["step"] for row in run.history]
    assert steps == sorted(set(steps))
    assert steps[-1] == 4
    last = run.history[-1]
    assert last["eval/mean_iou"] == pytest.approx(results["mean_iou"], abs=1e-6)
    assert any("train/loss" in row for row in run.history)


@pytest.mark.slow
def test_a_second_training_equals_training_in_its_own_process(run, data_dir, tmp_path):
    result = programs_in_forks.run("train.py", *small_flags(data_dir, tmp_path / "alone"), *FLAGS)
    assert result.returncode == 0, result.stderr
    second, alone = (
        json.loads((folder / "results/test-4.json").read_text()) for folder in (run.workdir, tmp_path / "alone")
    )
    assert second == alone


@pytest.mark.slow
def test_a_training_leaves_no_graph_and_no_model_behind(data_dir, tmp_path):
    assert programs_in_forks.exit_code(count_what_a_training_leaves, data_dir, tmp_path) == 0


def test_process_state_is_restored_after_training(tiny_config, monkeypatch):
    def set_everything(config):
        keras.utils.set_random_seed(config.runtime.seed)
        tf.config.experimental.enable_tensor_float_32_execution(False)
        logging.getLogger("petseg").setLevel(logging.WARNING)
        return {}

    monkeypatch.setattr(train, "train", set_everything)
    monkeypatch.setattr(logging.getLogger("petseg"), "level", logging.NOTSET)
    tf.config.experimental.enable_tensor_float_32_execution(True)  # whatever other tests left
    random.seed(3)
    np.random.seed(3)
    expected = random.getstate(), np.random.get_state()[1].tolist()
    petseg.train(tiny_config)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == expected
    assert tf.config.experimental.tensor_float_32_execution_enabled()
    assert logging.getLogger("petseg").level == logging.NOTSET


@pytest.fixture
def gc_thresholds():
    """Puts back what the whole test session has."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize("error", [None, ConfigError("cannot be used")])
def test_garbage_collection_settings_are_restored_after_training(tiny_config, monkeypatch, gc_thresholds, error):
    during = []

    def trained(config):
        during.append(gc.get_threshold())
        if error:
            raise error
        return {}

    monkeypatch.setattr(train, "train", trained)
    gc.set_threshold(701, 11, 12)
    with contextlib.suppress(ConfigError):
        petseg.train(tiny_config)
    assert gc.get_threshold() == (701, 11, 12)
    assert during[0][0] > 10_000  # tracing makes millions of objects, and next to no garbage


def test_importing_from_petseg_does_not_change_garbage_collection(gc_thresholds):
    gc.set_threshold(701, 11, 12)
    assert callable(petseg.load)
    assert gc.get_threshold() == (701, 11, 12)


def test_a_stop_request_raises_keyboard_interrupt(tiny_config, monkeypatch):
    def stop(config):
        raise StoppedError(signal.SIGINT, "; step 3 is saved")

    monkeypatch.setattr(train, "train", stop)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT; step 3 is saved"):
        petseg.train(tiny_config)


def test_determinism_left_on_by_an_earlier_training_is_warned_of(run, tiny_config, monkeypatch, caplog):
    monkeypatch.setattr(train, "train", lambda config: {})
    petseg.train(changed(tiny_config, "runtime", deterministic=False))
    assert "op determinism is on since an earlier training" in caplog.text


def test_errors_are_exceptions_of_one_line(tiny_config):
    with pytest.raises(ConfigError, match="--num_devices=2: there are 1") as error:
        petseg.train(
            tiny_config.changed(data={"batch_size": 7}, distribution={"strategy": "mirrored", "num_devices": 2})
        )
    assert "\n" not in str(error.value)
