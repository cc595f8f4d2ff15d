"""Gradients that travel in float16: how far they are from those in float32, and what an overflow does."""

from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from conftest import random_examples, replicas
from trainers import make_trainer

from petseg.config import Config, serialization
from petseg.errors import ConfigError
from petseg.runs import building


def in_one(arrays):
    """Arrays as a vector of length 1."""
    vector = np.concatenate([np.reshape(array, -1) for array in arrays])
    return vector / np.linalg.norm(vector)


@pytest.mark.slow
def test_gradients_in_float16_are_rounded_and_an_overflow_on_the_way_skips_the_step(tmp_path):
    trainer, _, batches = make_trainer(
        2, examples=random_examples(8), batch_size=8, sync_batch_norm=False, all_reduce_dtype="float16"
    )
    trainer.run(batches, 1)
    momenta = in_one([-variable.numpy() for variable in trainer.optimizer.variables if "momentum" in variable.path])
    exact = in_one(trainer.optimizer.join(list(trainer.gradients().values())))  # summed in float32, outside the step
    assert 1e-6 < np.linalg.norm(momenta - exact) < 5e-4  # 2 ** -11 is half a unit
    assert trainer.pop_measurements().scalars["loss_scale"] == 1024.0

    checkpoint = tf.train.Checkpoint(**trainer.state())
    saved, before = checkpoint.write(str(tmp_path / "saved")), trainer.weights()
    (scale,) = (variable for variable in trainer.loss_scale.variables if variable.dtype == tf.float32)
    scale.assign(2.0**30)  # with which no sum of a replica overflows, but what travels does
    trainer.run(batches, 1)
    scalars = trainer.pop_measurements().scalars
    assert (scalars["skipped_steps"], scalars["loss_scale"]) == (1, 2.0**29)
    assert trainer.nonfinite_replicas() == []
    for name, weight in trainer.weights().items():
        np.testing.assert_array_equal(weight, before[name])

    checkpoint.read(saved).assert_consumed()
    assert trainer.loss_scale.value() == 1024.0
    assert (len(trainer.run(batches, 1)), trainer.loop.traces) == (1, 1)
    assert any(np.any(weight != before[name]) for name, weight in trainer.weights().items())


def test_all_reduce_dtype_is_stored_in_the_config_and_defaults_to_float32():
    config = Config.of(all_reduce_dtype="float16", workdir="x")
    values = serialization.to_dict(config)
    assert serialization.from_dict(values) == config
    del values["compute"]["all_reduce_dtype"]
    assert serialization.from_dict(values).compute.all_reduce_dtype == "float32"


def test_one_replica_is_refused_but_not_the_one_that_is_left_of_a_cluster():
    config = Config.of(all_reduce_dtype="float16")
    building.check_replicas(config, replicas(2))
    with pytest.raises(ConfigError, match="--all_reduce_dtype=float16: must be float32 with one replica"):
        building.check_replicas(config, replicas(1))
    cluster = mock.create_autospec(tf.distribute.MultiWorkerMirroredStrategy, instance=True)
    cluster.num_replicas_in_sync = 1
    building.check_replicas(config, cluster)
