import json
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from petseg.errors import CheckpointError, WorkDirectoryError
from petseg.runs import checkpoints
from petseg.runs.checkpoint_files import resolve_checkpoint
from petseg.runs.checkpoints import BestCheckpoint, Checkpoints, newest_intact


def small_model(units=3):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(units)])
    return model, tf.Variable(0, dtype=tf.int64)


@pytest.fixture
def two(tmp_path):
    """A folder with `ckpt-5` and `ckpt-10`, whose weights are 5 and 10."""
    model, step = small_model(units=40)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3, model=model, step=step)
    for number in (5, 10):
        model.set_weights([np.full([2, 40], number), np.full([40], number)])
        checkpoints.save(number)
    return tmp_path / "checkpoints"


def test_a_checkpoint_restores_and_old_checkpoints_are_deleted(tmp_path):
    model, step = small_model()
    checkpoints = Checkpoints(tmp_path, keep=2, model=model, step=step)
    assert checkpoints.newest() is None
    for number in (5, 10, 15):
        step.assign(number)
        model.set_weights([np.full([2, 3], number), np.full([3], -number)])
        checkpoints.save(number)
    assert sorted(path.name for path in tmp_path.glob("*.index")) == ["ckpt-10.index", "ckpt-15.index"]
    assert tf.train.latest_checkpoint(str(tmp_path)) == checkpoints.newest() == str(tmp_path / "ckpt-15")
    other, other_step = small_model()
    Checkpoints(tmp_path, keep=2, model=other, step=other_step).restore(checkpoints.newest())
    assert int(other_step) == 15
    np.testing.assert_array_equal(other.get_weights()[0], np.full([2, 3], 15))


def test_a_checkpoint_of_other_objects_is_refused(tmp_path):
    model, step = small_model()
    Checkpoints(tmp_path, keep=1, model=model, step=step).save(1)
    path = str(tmp_path / "ckpt-1")
    wider, wider_step = small_model(units=4)
    with pytest.raises(CheckpointError, match="cannot be restored"):
        Checkpoints(tmp_path, keep=1, model=wider, step=wider_step).restore(path)
    with pytest.raises(CheckpointError, match="cannot be restored"):  # the saved step would be left over
        Checkpoints(tmp_path, keep=1, model=model).restore(path)
    with pytest.raises(CheckpointError, match="cannot be restored"):  # the new variable would be left out
        Checkpoints(tmp_path, keep=1, model=model, step=step, more=tf.Variable(1.0)).restore(path)
    with pytest.raises(CheckpointError, match="cannot be restored"):
        checkpoints.restore_model(path, model=wider)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip(path, bit=None):
    content = bytearray(path.read_bytes())
    bit = len(content) * 4 if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def garble(path):
    path.write_bytes(b"\xff\xfe model_checkpoint_path: ???")


DATA, INDEX = "ckpt-10.data-00000-of-00001", "ckpt-10.index"


@pytest.mark.parametrize("name", [DATA, INDEX])
@pytest.mark.parametrize("harm", [truncate, zero, flip, os.unlink, lambda path: os.truncate(path, 0)])
def test_the_newest_intact_checkpoint_is_used_and_damaged_ones_are_logged(two, name, harm, caplog):
    harm(two / name)
    assert checkpoints.newest_intact(two) == str(two / "ckpt-5")
    (message,) = caplog.messages
    assert message.startswith(f"skipped checkpoint {two}/ckpt-10, which is damaged: ")


@pytest.mark.parametrize("harm", [truncate, zero, garble, os.unlink])
def test_the_state_file_of_tensorflow_may_be_lost(two, harm):
    harm(two / "checkpoint")
    assert checkpoints.newest_intact(two) == str(two / "ckpt-10")


def test_a_run_with_only_damaged_or_lost_checkpoints_does_not_start_over(two):
    (two / DATA).unlink()
    truncate(two / "ckpt-5.index")
    with pytest.raises(CheckpointError, match=r"can be read, only damaged ones .*ckpt-10, .*ckpt-5"):
        checkpoints.newest_intact(two)
    for file in two.glob("ckpt-*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"only damaged ones .*ckpt-10"):  # the state file names it
        checkpoints.newest_intact(two)


def test_each_of_50_flipped_bits_is_caught_or_harmless(two):
    rng = np.random.default_rng(0)
    intact = {name: (two / name).read_bytes() for name in (DATA, INDEX)}
    expected = variables(two / "ckpt-10")
    caught = 0
    for i in range(50):
        name = (DATA, INDEX)[i % 2]
        flip(two / name, int(rng.integers(len(intact[name]) * 8)))
        if checkpoints.damage(str(two / "ckpt-10")):
            caught += 1
        else:
            found = variables(two / "ckpt-10")
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                np.testing.assert_array_equal(found[key], value)
        (two / name).write_bytes(intact[name])
    assert caught > 40


def variables(path):
    reader = tf.train.load_checkpoint(str(path))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


@pytest.mark.parametrize("renamed", [0, 1])
def test_an_unfinished_checkpoint_of_a_killed_process_is_ignored(two, renamed):
    (two / "unfinished-15").mkdir()
    for name in (DATA, INDEX)[renamed:]:
        shutil.copy(two / name, two / "unfinished-15" / name.replace("ckpt-10", "ckpt"))
    if renamed:
        shutil.copy(two / DATA, two / DATA.replace("10", "15"))
    assert checkpoints.newest_intact(two) == str(two / "ckpt-10")
    model, step = small_model(units=40)
    Checkpoints(two, keep=3, model=model, step=step).save(20)
    assert not list(two.glob("*15*"))
    assert checkpoints.steps(two) == [20, 10, 5]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_foreign_files_in_the_checkpoint_folder_are_kept(two, kind):
    foreign = two / "unfinished-foo"
    foreign.mkdir() if kind == "folder" else foreign.write_text("mine")
    assert checkpoints.newest_intact(two) == str(two / "ckpt-10")
    model, step = small_model(units=40)
    Checkpoints(two, keep=3, model=model, step=step).save(20)
    assert checkpoints.steps(two) == [20, 10, 5]
    assert foreign.exists()


def test_old_checkpoints_are_deleted_only_after_the_new_one_is_verified(two, monkeypatch):
    monkeypatch.setattr(checkpoints, "damage", lambda path: "planted damage")
    model, step = small_model(units=40)
    with pytest.raises(WorkDirectoryError, match=r"ckpt-15: cannot be written: it needs .* MiB are free \(planted"):
        Checkpoints(two, keep=1, model=model, step=step).save(15)
    monkeypatch.undo()
    assert checkpoints.steps(two) == [10, 5]
    assert not list(two.glob("unfinished*"))


def test_after_a_power_failure_no_index_is_without_its_data_and_no_data_without_its_folder(tmp_path, disk_calls):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1, x=tf.Variable(1.0))
    folder = str(tmp_path / "checkpoints")
    checkpoints.save(1)
    data, index = f"{folder}/ckpt-1.data-00000-of-00001", f"{folder}/ckpt-1.index"
    commit = disk_calls[disk_calls.index(("replace", data)) :]
    sync = ("fsync", folder)
    assert commit[:4] == [("replace", data), sync, ("replace", index), sync]
    (tmp_path / "checkpoints" / "unfinished-2").mkdir()
    (tmp_path / "checkpoints" / "ckpt-2.data-00000-of-00001").touch()
    disk_calls.clear()
    checkpoints.save(3)
    assert disk_calls[0] == sync  # before unfinished-2 is deleted


def test_a_disk_too_full_for_the_folder_of_checkpoints_is_one_line(tmp_path):
    (tmp_path / "run").touch()  # no folder can be made there
    with pytest.raises(WorkDirectoryError, match=r"ckpt-1: cannot be written: it needs 0\.0 MiB, \d+\.\d MiB are free"):
        Checkpoints(tmp_path / "run" / "checkpoints", keep=1, x=tf.Variable(1.0)).save(1)


def test_only_the_best_is_kept_and_ties_go_to_the_earlier_step(tmp_path):
    model, step = small_model()
    best = BestCheckpoint(tmp_path, model=model, step=step)
    taken = [best.offer(score, number) for number, score in [(1, 0.3), (2, 0.5), (3, 0.4), (4, 0.5)]]
    assert taken == [True, True, False, False]
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "mean_iou": 0.5}
    assert [path.name for path in tmp_path.glob("*.index")] == ["ckpt-2.index"]
    assert best.offer(0.5, 2)  # the same evaluation again, after a restart: saved again, to be sure


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"step": "x", "mean_iou": 1}', '{"step": 2}', '{"step": 9, "mean_iou": 1}']
)
def test_a_damaged_best_record_is_replaced(tmp_path, text):
    model, step = small_model()
    best = BestCheckpoint(tmp_path, model=model, step=step)
    best.offer(0.9, 2)
    (tmp_path / "best.json").write_text(text)
    assert best.offer(0.1, 3)
    assert resolve_checkpoint(tmp_path, tmp_path, "best", newest_intact) == str(tmp_path / "ckpt-3")


def test_checkpoint_names_resolve_to_paths(tmp_path):
    model, step = small_model()
    folder = tmp_path / "checkpoints"
    with pytest.raises(CheckpointError, match="--checkpoint=latest: there is no checkpoint in"):
        resolve_checkpoint(folder, tmp_path / "best", "latest", newest_intact)
    Checkpoints(folder, keep=1, model=model, step=step).save(7)
    path = str(folder / "ckpt-7")
    assert resolve_checkpoint(folder, tmp_path / "best", "latest", newest_intact) == path
    assert resolve_checkpoint(folder, tmp_path / "best", path + ".index", newest_intact) == path
    with pytest.raises(CheckpointError, match="nowhere/ckpt-1: there is no such checkpoint"):
        resolve_checkpoint(folder, tmp_path / "best", "nowhere/ckpt-1", newest_intact)
    with pytest.raises(CheckpointError, match="--checkpoint=best"):
        resolve_checkpoint(folder, tmp_path / "best", "best", newest_intact)
