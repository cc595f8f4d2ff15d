import numpy as np
import pytest
import tensorflow as tf
from conftest import random_examples
from trainers import make_trainer

from petseg.reporting import tags
from petseg.runs.checkpoints import Checkpoints
from petseg.training.measurements import MeasuredSums
from petseg.training.trainer import Trainer


@pytest.mark.slow
def test_a_scalar_added_in_measure_is_stored_by_name_and_can_be_removed_again(tmp_path, monkeypatch):
    examples = random_examples(8)
    old, _, batches = make_trainer(examples=examples)
    old.run(batches, 2)
    old.complete_state()
    Checkpoints(tmp_path, keep=1, **old.state()).save(2)
    before = old.pop_measurements()

    measure = Trainer._measure
    with monkeypatch.context() as patch:
        patch.setattr(
            Trainer, "_measure", lambda self, **values: measure(self, **values) | {"squared_norm": values["norm"] ** 2}
        )
        new, _, batches = make_trainer(examples=examples)
        checkpoints = Checkpoints(tmp_path, keep=1, **new.state())
        checkpoints.restore(checkpoints.newest())
        new.complete_state()
        checkpoints.save(3)
        restored = new.pop_measurements()
        assert restored.steps == 2
        assert restored.scalars["squared_norm"] == 0
        assert {name: restored.scalars[name] for name in before.scalars} == before.scalars
        new.run(batches, 1)
        after = new.pop_measurements().scalars
        assert after["squared_norm"] == pytest.approx(after["gradient_norm"] ** 2)

    old, *_ = make_trainer(examples=examples)
    Checkpoints(tmp_path, keep=1, **old.state()).restore(str(tmp_path / "ckpt-3"))
    assert old.pop_measurements().scalars == before.scalars


def test_the_update_ratio_is_that_of_the_last_update_before_a_reading():
    trainer, _, batches = make_trainer(examples=random_examples(8), learning_rate=0.1)
    trainer.run(batches, 2)
    weights = np.concatenate([value.reshape(-1) for value in trainer.weights().values()])
    trainer.pop_measurements()
    trainer.run(batches, 1)
    update = np.concatenate([value.reshape(-1) for value in trainer.weights().values()]) - weights
    last = np.linalg.norm(update) / np.linalg.norm(weights)
    assert trainer.pop_measurements().scalars["update_ratio"] == pytest.approx(last, rel=1e-4)


def test_a_sum_that_an_earlier_version_took_over_all_steps_begins_anew():
    sums = MeasuredSums(["loss", "denominator", "update_ratio", "measured_updates"], 3)
    sums.load_by_name({"update_ratio": np.float32(7), "loss": np.float32(6), "denominator": np.float32(3)})
    sums.add({"loss": 0.0, "denominator": 0.0, "update_ratio": tf.constant(0.5), "measured_updates": tf.constant(1.0)})
    assert sums.means() == {"loss": 2.0, "update_ratio": 0.5}


def test_a_scalar_without_a_description_gets_a_default_one():
    assert tags.describe(tags.measurement_tag("squared_norm")) == "Optimization of squared_norm."
    assert tags.describe(tags.measurement_tag("gradient_norm")).startswith("Global norm of the gradients")
