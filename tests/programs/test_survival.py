"""Programs that are killed, stopped by a signal, or run out of disk space."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import changed, events, own_lines, tiny_flags
from programs_in_forks import Program

from petseg.runs import checkpoints, train
from petseg.runs.work_directory import WorkDirectory

STEPS = 30
# Of the runs that are compared bit by bit; tests of resuming elsewhere have the other decoder.
RECIPE = (
    "--ema_decay=0.9", "--augment=strong", "--vertical_flip=0.5", "--quarter_turns=1", "--crop_area_max=2",
    "--crop_focus=0.3", "--eval_at_start", "--decoder=light", "--inner_size=64",
)  # fmt: skip


def start(*flags):
    return Program("train.py", *flags)


def flags_of(data_dir, workdir, steps=STEPS):
    intervals = ["--summary_every=4", "--steps_per_loop=3", "--checkpoint_every=5", "--eval_every=10"]
    return [*tiny_flags(data_dir, workdir), *intervals, f"--train_steps={steps}"]


def tensors(path):
    reader = tf.train.load_checkpoint(str(path))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def outcome(workdir):
    """Everything that a finished run has written, without times."""
    best = json.loads((workdir / "best" / "best.json").read_text())
    of_the_machine = ("speed/", "time_share/", "memory/")
    rows = (workdir / "metrics.csv").read_text().splitlines()
    rows = [row for row in rows if not any(tag in row for tag in of_the_machine)]
    results = {path.name: path.read_text() for path in (workdir / "results").iterdir()}
    for run in ("train", "eval", "ema", "final"):  # one clean line for each tag
        for tag, found in events(workdir / run).items():
            assert found == sorted(set(found)), (run, tag)
            assert run == "train" or tag.startswith("_hparams_") or found == [0, 10, 20, 30]
    checkpoints = [workdir / "checkpoints" / f"ckpt-{STEPS}", workdir / "best" / f"ckpt-{best['step']}"]
    return {"best": best, "rows": rows, "results": results}, [tensors(path) for path in checkpoints]


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    """The outcome of an uninterrupted run, and its duration in seconds."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    begin = time.monotonic()
    process = start(*flags_of(data_dir, workdir), *RECIPE)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return outcome(workdir), time.monotonic() - begin


def wait_for_a_save(workdir, seconds):
    """Returns while a checkpoint is being written."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not list(workdir.glob("*/unfinished-*")):
        time.sleep(0.0005)


def assert_equal(tensors_found, tensors_expected):
    assert tensors_found.keys() == tensors_expected.keys()
    for name, value in tensors_expected.items():
        np.testing.assert_array_equal(tensors_found[name], value, err_msg=name)


def survive(data_dir, workdir, undisturbed, seed):
    """Kills a run up to three times, starts it again with the same command until it is complete, and compares."""
    expected, seconds = undisturbed
    rng = random.Random(seed)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        process = start(*flags_of(data_dir, workdir), *RECIPE)
        if seed % 3 == 0:
            wait_for_a_save(workdir, 2 * seconds)
            time.sleep(rng.uniform(0, 0.05))
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(*flags_of(data_dir, workdir), *RECIPE)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    found = outcome(workdir)
    assert found[0] == expected[0]
    for tensors_found, tensors_expected in zip(found[1], expected[1], strict=True):
        assert_equal(tensors_found, tensors_expected)
    assert not list(workdir.glob("*/unfinished-*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(data_dir, tmp_path, undisturbed, seed):
    survive(data_dir, tmp_path / "run", undisturbed, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3, 25))
def test_a_run_killed_at_more_random_moments_ends_in_the_same_bits(data_dir, tmp_path, undisturbed, seed):
    survive(data_dir, tmp_path / "run", undisturbed, seed)


@pytest.mark.slow
def test_extending_a_complete_run_ends_in_the_same_bits(data_dir, tmp_path, undisturbed):
    (expected, tensors_expected), _ = undisturbed
    workdir = tmp_path / "run"
    for steps in (11, STEPS):
        process = start(*flags_of(data_dir, workdir, steps), *RECIPE)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    assert f"changed: --train_steps was 11, is now {STEPS}" in stderr
    assert re.search(r"resumed from .*/ckpt-11", stderr)
    assert len(tensors_expected[0]) > 100  # weights, statistics, their averages, Adam's two slots, the clock
    assert_equal(tensors(workdir / "checkpoints" / f"ckpt-{STEPS}"), tensors_expected[0])
    for name in (f"test-{STEPS}.json", f"test-{STEPS}.ema.json"):
        assert (workdir / "results" / name).read_text() == expected["results"][name]


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_stop_signal_saves_a_checkpoint_and_sets_the_exit_code(data_dir, tmp_path, number, code):
    workdir = tmp_path / "run"
    process = start(*flags_of(data_dir, workdir, steps=100_000), "--checkpoint_every=1000", "--steps_per_loop=1000")
    wait_for(lambda: len((workdir / "metrics.csv").read_text()) > 200 if (workdir / "metrics.csv").exists() else False)
    wait_for(lambda: (workdir / "results" / "test-10.json").exists())
    process.send_signal(number)
    begin = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - begin < 20
    assert process.returncode == code
    line = own_lines(stderr)[-1]
    match = re.fullmatch(rf"train\.py: stopped by {number.name} at step (\d+); rerun to resume from (\S+)", line)
    assert match, line
    assert match[2] == str(workdir / "checkpoints" / f"ckpt-{match[1]}")
    assert checkpoints.damage(match[2]) is None
    assert not (workdir / "lock").exists()


def test_a_stop_signal_during_data_preparation_leaves_nothing(tmp_path):
    process = start("--dataset=synthetic_pets", f"--data_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}")
    wait_for(lambda: (tmp_path / "data").exists())
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - begin < 20
    assert process.returncode == 143
    assert own_lines(stderr)[-1] == "train.py: stopped by SIGTERM"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_is_killed(data_dir, tmp_path):
    workdir = tmp_path / "run"
    first = start(*flags_of(data_dir, workdir, steps=100_000))
    wait_for(lambda: (workdir / "checkpoints" / "ckpt-5.index").exists())
    first.send_signal(signal.SIGSTOP)  # one that is halted lives as well, and leaves the processor to the others
    second = start(*flags_of(data_dir, workdir, steps=100_000))
    _, stderr = second.communicate(timeout=120)
    assert second.returncode == 2
    assert own_lines(stderr)[-1] == f"train.py: error: --workdir={workdir}: another process is training here"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert (workdir / "lock").exists()
    newest = checkpoints.steps(workdir / "checkpoints")[0]
    third = start(*flags_of(data_dir, workdir, steps=newest + 5))
    _, stderr = third.communicate(timeout=120)
    assert third.returncode == 0, stderr
    assert "resumed from" in stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 50 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(data_dir, small_disk):
    workdir = small_disk / "run"
    process = start(*flags_of(data_dir, workdir), "--eval_every=1000")
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 2, stderr
    line = own_lines(stderr)[-1]
    assert re.match(
        rf"train\.py: error: {workdir}/checkpoints/ckpt-15: cannot be written: "
        r"it needs 1\d\.\d MiB, \d+\.\d MiB are free \(.*\)",
        line,
    ), line
    assert "Traceback" not in stderr
    assert checkpoints.newest_intact(workdir / "checkpoints") == str(workdir / "checkpoints" / "ckpt-10")
    assert not list(workdir.glob("*/unfinished-*"))


@pytest.mark.slow
def test_checkpoint_every_minutes_saves_between_the_intervals(tiny_config):
    config = changed(tiny_config, "schedule", checkpoint_every=100, checkpoint_every_minutes=1e-9, steps_per_loop=1,
                     train_steps=6, keep_checkpoints=10)  # fmt: skip
    train.train(config)
    assert len(checkpoints.steps(WorkDirectory(config.runtime.workdir).checkpoints)) > 3


@pytest.mark.slow
def test_an_evaluation_whose_results_were_lost_is_repeated(tiny_config, same_build):
    config = changed(tiny_config, "schedule", train_steps=4, eval_every=2)
    expected = train.train(config)
    workdir = WorkDirectory(config.runtime.workdir)
    file = workdir.results_file("test", 4)
    text = file.read_text()
    file.unlink()
    again = train.train(config)
    assert again == expected
    assert file.read_text() == text
    assert os.path.exists(workdir.best / "best.json")
