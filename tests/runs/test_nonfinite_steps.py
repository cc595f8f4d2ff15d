"""Runs with injected non-finite losses and gradients."""

import logging
import re

import numpy as np
import pytest
import tensorflow as tf
from conftest import changed

from petseg.errors import NonFiniteLossError
from petseg.runs import checkpoints, train
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime.strategies import Placement
from petseg.training import augmentation
from petseg.training.trainer import Trainer


def tensors(path):
    reader = tf.train.load_checkpoint(str(path))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def poison(monkeypatch, *poisoned):
    """From here on, the example at position 5 of the batches of some steps is not a number."""
    genuine = augmentation.build_augmentation

    def make(*arguments, **options):
        augment = genuine(*arguments, **options)

        def spoil(images, masks, step, positions):
            images, masks = augment(images, masks, step, positions)
            hit = (positions == 5) & tf.reduce_any(step == tf.constant(poisoned, tf.int64))
            return tf.where(hit[:, None, None, None], np.float32("nan"), images), masks

        return spoil

    monkeypatch.setattr(augmentation, "build_augmentation", make)


@pytest.fixture
def poisoned_step(monkeypatch):
    """From here on, step 3 is not finite."""
    poison(monkeypatch, 3)


def poisoned_config(tiny_config, **runtime):
    return changed(changed(tiny_config, "schedule", train_steps=6), "runtime", **runtime)


def test_a_nonfinite_batch_ends_the_run_and_names_its_examples(tiny_config, poisoned_step):
    config = poisoned_config(tiny_config)
    with pytest.raises(NonFiniteLossError) as caught:
        train.train(config)
    workdir = WorkDirectory(config.runtime.workdir)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert message.startswith("the loss or its gradient is not finite at step 3 on replica 0 (examples ")
    ids = [int(number) for number in re.search(r"examples ([\d, ]+)", message)[1].split(", ")]
    assert len(set(ids)) == 8
    assert message.endswith(f"the last good checkpoint is {workdir.checkpoints}/ckpt-2")
    assert checkpoints.damage(str(workdir.checkpoints / "ckpt-2")) is None
    assert checkpoints.steps(workdir.checkpoints) == [2]


def assert_finite(config, iterations):
    """That a run is at step 6 with finite weights and has made some updates."""
    final = tensors(WorkDirectory(config.runtime.workdir).checkpoints / "ckpt-6")
    assert all(np.isfinite(value).all() for value in final.values() if not isinstance(value, bytes))
    assert final["step/.ATTRIBUTES/VARIABLE_VALUE"] == 6
    assert final["optimizer/_optimizers/0/_iterations/.ATTRIBUTES/VARIABLE_VALUE"] == iterations


@pytest.mark.slow
def test_a_nonfinite_batch_can_take_the_run_back_to_its_checkpoint(tiny_config, poisoned_step, caplog):
    config = poisoned_config(tiny_config, on_nonfinite="restore")
    with caplog.at_level(logging.WARNING):
        results = train.train(config)
    (message,) = [message for message in caplog.messages if "not finite" in message]
    assert message.endswith("ckpt-2")
    assert np.isfinite(results["loss"])
    assert_finite(config, iterations=4)  # the checkpoint does not contain step 2


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_nonfinite_batches_can_be_skipped_up_to_a_limit_that_survives_a_restart(
    tiny_config, same_build, monkeypatch, caplog, killed
):
    poison(monkeypatch, 1, 2, 3, 5)
    config = poisoned_config(tiny_config, on_nonfinite="skip", nonfinite_limit=3)
    with caplog.at_level(logging.WARNING):
        train.train(changed(config, "schedule", train_steps=4))
    assert [message.rpartition("; ")[2] for message in caplog.messages if "not finite" in message] == ["skipped"] * 3
    if killed:  # before the last checkpoint: steps 2 and 3 are made, and counted, once more
        for file in WorkDirectory(config.runtime.workdir).checkpoints.glob("ckpt-4.*"):
            file.unlink()
    with pytest.raises(NonFiniteLossError, match=r"at step 5 .*, number 4 of the run, above --nonfinite_limit=3"):
        train.train(config)
    if killed:
        results = train.train(changed(config, "runtime", nonfinite_limit=4))
        assert results["step"] == 6
        assert np.isfinite(results["loss"])
        assert_finite(config, iterations=2)


@pytest.mark.slow
def test_restoring_a_checkpoint_keeps_the_count_of_nonfinite_steps(tiny_config, same_build, monkeypatch):
    poison(monkeypatch, 2, 3, 5)
    config = poisoned_config(tiny_config, on_nonfinite="restore", nonfinite_limit=2)
    with pytest.raises(NonFiniteLossError, match=r"at step 5 .*, number 3 of the run"):
        train.train(config)
    with pytest.raises(NonFiniteLossError, match=r"at step 5 .*, number 3 of the run"):  # at each restart
        train.train(config)


def plant_in_a_weight(monkeypatch, at):
    genuine = Trainer.run

    def run(self, iterator, num_steps):
        if int(self.step.numpy()) == at and num_steps and not getattr(self, "planted", False):
            self.planted = True
            weight = self.model.get_layer("logits").kernel
            weight.assign(tf.fill(weight.shape, np.float32("nan")))
        return genuine(self, iterator, num_steps)

    monkeypatch.setattr(Trainer, "run", run)


@pytest.mark.slow
def test_nonfinite_weights_end_a_run_that_skips_and_are_repaired_by_restore(tiny_config, monkeypatch, tmp_path):
    plant_in_a_weight(monkeypatch, at=2)
    config = changed(tiny_config, "schedule", train_steps=20, eval_every=20)
    skipping = changed(config, "runtime", on_nonfinite="skip", nonfinite_limit=3)
    with pytest.raises(NonFiniteLossError, match="not finite at step 5"):
        train.train(skipping)
    restoring = changed(config, "runtime", on_nonfinite="restore", workdir=str(tmp_path / "other"))
    assert np.isfinite(train.train(restoring)["loss"])


@pytest.mark.slow
def test_a_cluster_restores_a_checkpoint_that_all_processes_see(tiny_config, poisoned_step, monkeypatch, caplog):
    config = poisoned_config(tiny_config, on_nonfinite="restore")
    config = changed(config, "schedule", checkpoint_every=1, keep_checkpoints=10)
    # Another process sees the checkpoint of step 3 later than this one.
    monkeypatch.setattr(Placement, "gather", lambda self, value: [value, 2] if value == 3 else [value])
    with caplog.at_level(logging.WARNING):
        train.train(config)
    assert [message for message in caplog.messages if message.endswith("back to the weights of "
            f"{WorkDirectory(config.runtime.workdir).checkpoints}/ckpt-2")]  # fmt: skip
