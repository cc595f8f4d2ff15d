"""Checkpoints that a thread writes while training goes on."""

import contextlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import changed, four_steps, random_examples, replicas
from programs_in_forks import exit_code
from trainers import make_trainer

from petseg.errors import StoppedError, WorkDirectoryError
from petseg.runs import checkpoints, evaluations, train
from petseg.runs.async_checkpoints import CheckpointWriter
from petseg.runs.checkpoints import BestCheckpoint, Checkpoints
from petseg.runs.snapshots import Snapshots
from petseg.runs.work_directory import WorkDirectory
from petseg.training.trainer import Trainer


def tensors(path):
    reader = tf.train.load_checkpoint(str(path))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture
def gate(monkeypatch):
    """Holds each write just before it begins until the event is set."""
    event, genuine = threading.Event(), Checkpoints._write

    def write(self, *arguments):
        assert event.wait(60)
        genuine(self, *arguments)

    monkeypatch.setattr(Checkpoints, "_write", write)
    yield event
    event.set()


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_checkpoint_holds_the_values_of_its_save_while_training_goes_on(tmp_path, gate, number):
    trainer, _, batches = make_trainer(
        number, examples=random_examples(8), optimizer="adamw", weight_decay=0.1, ema_decay=0.9, train_encoder=True
    )
    trainer.run(batches, 2)
    trainer.complete_state()
    tf.train.Checkpoint(**trainer.state()).write(str(tmp_path / "expected"))
    with CheckpointWriter(in_thread=True) as writer:
        saved = Checkpoints(tmp_path / "saved", keep=1, writer=writer, **trainer.state())
        saved.save(2)
        trainer.run(batches, 3)
        trainer.average.swap()
        trainer.pop_measurements()
        assert not (tmp_path / "saved").exists()
        gate.set()
        assert saved.newest() == str(tmp_path / "saved" / "ckpt-2")
    assert_equal(tensors(tmp_path / "saved" / "ckpt-2"), tensors(tmp_path / "expected"))
    # After a restore, which assigns slices of vectors, reads share the memory of the variables again.
    trainer.average.swap()
    saved.restore(str(tmp_path / "saved" / "ckpt-2"))
    vector = trainer.average._averages[0].vector
    first, second = (memoryview(vector.read_value()) for _ in range(2))
    assert np.shares_memory(first, second)
    take = saved._snapshots.take()
    trainer.run(batches, 3)
    take(str(tmp_path / "again"))
    assert_equal(tensors(tmp_path / "again"), tensors(tmp_path / "expected"))


class Stored(tf.__internal__.tracking.Trackable):
    """An object that stores what is no variable."""

    number = 5

    def _serialize_to_tensors(self):
        return {"number": tf.constant(self.number)}


def test_a_snapshot_of_any_object_is_what_tensorflow_would_save(tmp_path):
    strategy, stored = replicas(2), Stored()
    with strategy.scope():
        mirrored = tf.Variable(3.0)
        total = tf.Variable(
            0.0, synchronization=tf.VariableSynchronization.ON_READ, aggregation=tf.VariableAggregation.SUM
        )
    with tf.device("cpu:1"):
        elsewhere = tf.Variable([1.0, 2.0])
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    table.insert(tf.constant(["key"]), tf.constant([7], tf.int64))
    checkpoint = tf.train.Checkpoint(
        mirrored=mirrored, total=total, elsewhere=elsewhere, table=table, stored=stored, again=mirrored
    )
    snapshots = Snapshots(checkpoint)
    strategy.run(lambda: total.assign_add(2.0))
    write_to = snapshots.take()
    checkpoint.write(str(tmp_path / "expected"))
    mirrored.assign(9.0)
    elsewhere.assign([9.0, 9.0])
    total.assign(9.0)
    table.insert(tf.constant(["key"]), tf.constant([9], tf.int64))
    stored.number = 9
    write_to(str(tmp_path / "found"))
    expected = tensors(tmp_path / "expected")
    assert expected["total/.ATTRIBUTES/VARIABLE_VALUE"] == 4
    assert_equal(tensors(tmp_path / "found"), expected)


def small(folder, writer, keep=3):
    """A variable, checkpoints of it and the best one."""
    value = tf.Variable(0.0)
    latest = Checkpoints(folder / "checkpoints", keep=keep, writer=writer, value=value)
    return value, latest, BestCheckpoint(folder / "best", writer=writer, value=value)


def saved_value(path):
    return float(tf.train.load_checkpoint(path).get_tensor("value/.ATTRIBUTES/VARIABLE_VALUE"))


def test_a_save_waits_for_the_one_before(tmp_path, monkeypatch):
    genuine, running = Checkpoints._write, []

    def slow(self, step, *arguments):
        running.append(step)
        assert len(running) == 1
        time.sleep(0.1)
        genuine(self, step, *arguments)
        running.remove(step)

    monkeypatch.setattr(Checkpoints, "_write", slow)
    with CheckpointWriter(in_thread=True) as writer:
        value, latest, best = small(tmp_path, writer)
        for step in (1, 2, 3):
            value.assign(step)
            best.offer(step / 10, step)
            latest.save(step)
        value.assign(4)
    assert checkpoints.steps(tmp_path / "checkpoints") == [3, 2, 1]
    assert [saved_value(str(tmp_path / "checkpoints" / f"ckpt-{step}")) for step in (1, 2, 3)] == [1, 2, 3]
    assert checkpoints.best_record(tmp_path / "best") == {"step": 3, "mean_iou": 0.3}


@pytest.mark.parametrize("then", ["check", "wait", "save", "newest", "leave"])
def test_a_failed_write_is_reported_at_the_next_occasion(tmp_path, monkeypatch, then):
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(CheckpointWriter(in_thread=True))
        _, latest, _ = small(tmp_path, writer)
        latest.save(1)
        latest.newest()
        monkeypatch.setattr(checkpoints, "damage", lambda path: "planted damage")
        latest.save(2)
        while not writer._write.done():
            time.sleep(0.01)
        with pytest.raises(WorkDirectoryError, match=r"ckpt-2: cannot be written: it needs .*planted damage"):
            {
                "check": writer.check,
                "wait": writer.wait,
                "save": lambda: latest.save(3),
                "newest": latest.newest,
                "leave": stack.close,
            }[then]()
        writer.check()  # it is reported once
    assert checkpoints.steps(tmp_path / "checkpoints") == [1]


def test_an_error_waits_for_the_write_and_hides_that_it_failed_only_in_the_log(tmp_path, gate, caplog):
    def leave():
        with CheckpointWriter(in_thread=True) as writer:
            small(tmp_path, writer)[1].save(1)
            threading.Timer(0.2, gate.set).start()
            raise KeyError("main loop")

    with pytest.raises(KeyError, match="main loop"):
        leave()
    assert checkpoints.steps(tmp_path / "checkpoints") == [1]
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(KeyError, match="main loop"):
        leave()
    assert "ckpt-1: cannot be written" in caplog.messages[-1]


class Killed(BaseException):
    """Not caught by any program."""


def kill_at_line(number):
    """A trace function that ends a thread before it runs the given line of functions that change files."""
    lines = iter(range(1, 10_000))
    functions = ("_write", "_commit", "_clear_unfinished", "_prune", "_record", "_delete", "_flush", "write_bytes")

    def trace(frame, event, _):
        code = frame.f_code
        if code.co_name not in functions or Path(code.co_filename).name not in ("checkpoints.py", "files.py"):
            return None
        if event == "line" and next(lines) == number:
            raise Killed
        return trace

    return trace


@pytest.mark.slow
def test_a_kill_before_each_line_of_the_thread_leaves_an_intact_checkpoint(tmp_path):
    found, before = [], threading.gettrace()
    value, latest, best = small(tmp_path / "before", CheckpointWriter())
    value.assign(1)
    best.offer(0.1, 1)
    latest.save(1)
    for number in range(1, 10_000):
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(number))
        threading.settrace(kill_at_line(number))
        with contextlib.suppress(Killed), CheckpointWriter(in_thread=True) as writer:
            value, latest, best = small(folder, writer, keep=1)
            value.assign(2)
            best.offer(0.2, 2)
            latest.save(2)
        threading.settrace(before)
        step = checkpoints.step_of(checkpoints.newest_intact(folder / "checkpoints"))
        record = checkpoints.best_record(folder / "best")
        assert saved_value(str(folder / "checkpoints" / f"ckpt-{step}")) == step
        assert saved_value(str(folder / "best" / f"ckpt-{record['step']}")) == record["step"] == record["mean_iou"] * 10
        found.append((record["step"], step))
        complete = not list(folder.glob("*/unfinished-*")) and checkpoints.steps(folder / "checkpoints") == [2]
        _, latest, best = small(folder, CheckpointWriter(), keep=1)
        latest.save(3)
        best.offer(0.3, 3)
        assert not list(folder.glob("*/unfinished-*"))
        assert checkpoints.steps(folder / "checkpoints") == checkpoints.steps(folder / "best") == [3]
        if complete:
            break
    assert len(found) > 50
    assert found == sorted(found)
    assert set(found) == {(1, 1), (2, 1), (2, 2)}


@pytest.mark.slow
def test_a_stop_signal_during_a_write_waits_for_it(tiny_config, monkeypatch):
    """Of the best checkpoint of step 2; results are written after it, and the checkpoint of the step comes last."""
    config = changed(tiny_config, "schedule", train_steps=400, eval_every=2, checkpoint_every=400)
    workdir, order = WorkDirectory(config.runtime.workdir), []
    genuine, write_json = Checkpoints._write, evaluations.write_json

    def write(self, step, *arguments):
        if self._directory == workdir.best:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        genuine(self, step, *arguments)
        order.append((self._directory.name, step, threading.current_thread().name))

    def write_results(path, scores):
        order.append((path.name, checkpoints.best_record(workdir.best)["step"]))
        write_json(path, scores)

    monkeypatch.setattr(Checkpoints, "_write", write)
    monkeypatch.setattr(evaluations, "write_json", write_results)
    with pytest.raises(
        StoppedError, match=r"stopped by SIGTERM at step (\d+); rerun to resume from .*/ckpt-\1$"
    ) as stop:
        train.train(config)
    last = int(str(stop.value).rpartition("-")[2])
    assert order == [("best", 2, "checkpoints_0"), ("test-2.json", 2), ("checkpoints", last, "checkpoints_0")]
    assert not list(workdir.path.glob("*/unfinished-*"))


def killed_while_training_goes_on(config):
    """Trains, and kills the process while the thread writes the checkpoint of step 2 and the loop is at step 4."""
    steps, genuine = [], Trainer.run

    def run(self, *arguments):
        times = genuine(self, *arguments)
        steps.append(int(self.step))
        return times

    def commit(self, folder, step):
        while self._directory.name == "checkpoints" and steps[-1] < 4:
            time.sleep(0.01)
        if self._directory.name == "checkpoints":
            os.kill(os.getpid(), signal.SIGKILL)
        genuine_commit(self, folder, step)

    genuine_commit, Checkpoints._commit, Trainer.run = Checkpoints._commit, commit, run
    train.train(config)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--nosync_checkpoints", "--sync_checkpoints"])
def test_a_run_killed_while_it_trains_beside_a_write_ends_in_the_same_bits(data_dir, finished_run, tmp_path, flag):
    workdir = WorkDirectory(tmp_path / "run")
    if flag == "--nosync_checkpoints":
        assert exit_code(killed_while_training_goes_on, four_steps(data_dir, workdir.path)) == -signal.SIGKILL
        assert not checkpoints.steps(workdir.checkpoints)
    train.train(four_steps(data_dir, workdir.path, flag))
    finished = WorkDirectory(finished_run)
    for file in (
        "checkpoints/ckpt-2",
        "checkpoints/ckpt-4",
        f"best/ckpt-{checkpoints.best_record(finished.best)['step']}",
    ):
        found, expected = (tensors(path / file) for path in (workdir.path, finished.path))
        graphs = [each.pop("_CHECKPOINTABLE_OBJECT_GRAPH") for each in (found, expected)]  # they hold Keras's numbers
        assert len(graphs) == 2
        assert_equal(found, expected)
    assert (workdir.best / "best.json").read_text() == (finished.best / "best.json").read_text()
