import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg import checkpointing
from petseg.errors import CheckpointError


def small_model(units=3):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(units)])
    return model, tf.Variable(0, dtype=tf.int64)


def test_what_was_saved_comes_back_and_old_ones_go(tmp_path):
    model, step = small_model()
    checkpoints = checkpointing.Checkpoints(tmp_path, keep=2, model=model, step=step)
    assert checkpoints.latest is None
    for number in (5, 10, 15):
        step.assign(number)
        model.set_weights([np.full([2, 3], number), np.full([3], -number)])
        checkpoints.save(number)
    assert sorted(path.name for path in tmp_path.glob("*.index")) == ["ckpt-10.index", "ckpt-15.index"]
    other, other_step = small_model()
    checkpointing.Checkpoints(tmp_path, keep=2, model=other, step=other_step).restore(checkpoints.latest)
    assert int(other_step) == 15
    np.testing.assert_array_equal(other.get_weights()[0], np.full([2, 3], 15))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    model, step = small_model()
    path = checkpointing.Checkpoints(tmp_path, keep=1, model=model, step=step).save(1)
    wider, wider_step = small_model(units=4)
    with pytest.raises(CheckpointError, match="cannot be restored"):
        checkpointing.Checkpoints(tmp_path, keep=1, model=wider, step=wider_step).restore(path)
    with pytest.raises(CheckpointError, match="cannot be restored"):  # the saved step would be left over
        checkpointing.Checkpoints(tmp_path, keep=1, model=model).restore(path)
    with pytest.raises(CheckpointError, match="cannot be restored"):  # the new variable would be left out
        checkpointing.Checkpoints(tmp_path, keep=1, model=model, step=step, more=tf.Variable(1.0)).restore(path)
    with pytest.raises(CheckpointError, match="cannot be restored"):
        checkpointing.restore_model(path, wider)


def test_only_the_best_is_kept_and_ties_go_to_the_earlier_step(tmp_path):
    model, step = small_model()
    best = checkpointing.BestCheckpoint(tmp_path, model=model, step=step)
    taken = [best.offer(score, number) for number, score in [(1, 0.3), (2, 0.5), (3, 0.4), (4, 0.5)]]
    assert taken == [True, True, False, False]
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "mean_iou": 0.5}
    assert [path.name for path in tmp_path.glob("*.index")] == ["ckpt-2.index"]
    assert best.offer(0.5, 2)  # the same evaluation again, after a restart: saved again, to be sure


def test_find(tmp_path):
    model, step = small_model()
    folder = tmp_path / "checkpoints"
    with pytest.raises(CheckpointError, match="--checkpoint=latest: there is no checkpoint in"):
        checkpointing.find(folder, tmp_path / "best", "latest")
    path = checkpointing.Checkpoints(folder, keep=1, model=model, step=step).save(7)
    assert checkpointing.find(folder, tmp_path / "best", "latest") == path
    assert checkpointing.find(folder, tmp_path / "best", path + ".index") == path
    with pytest.raises(CheckpointError, match="nowhere/ckpt-1: there is no such checkpoint"):
        checkpointing.find(folder, tmp_path / "best", "nowhere/ckpt-1")
    with pytest.raises(CheckpointError, match="--checkpoint=best"):
        checkpointing.find(folder, tmp_path / "best", "best")
