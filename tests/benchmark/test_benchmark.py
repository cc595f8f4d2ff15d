"""The benchmark: counted operations, turns of the contestants, tables, and the program."""

import json
import os
import subprocess
import sys

import keras
import pytest
from conftest import ROOT, changed, own_lines, tiny_flags

from petseg.benchmark import __main__ as program, contestants, step_cost


def convolutions(frozen):
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(5, 3, padding="same", use_bias=False, trainable=not frozen)(inputs)
    return keras.Model(inputs, keras.layers.Conv2DTranspose(2, 3, strides=2, padding="same", use_bias=False)(x))


def test_operations_include_only_the_gradients_of_trained_weights():
    first, second = 2 * 8 * 8 * 9 * 3 * 5, 2 * 8 * 8 * 9 * 5 * 2
    frozen, _ = step_cost.flops_and_bytes(convolutions(frozen=True), 4)
    trained, _ = step_cost.flops_and_bytes(convolutions(frozen=False), 4)
    assert frozen == (first + second) + second  # forward, and the second's kernel
    assert trained == frozen + second + first  # and the second's input, and the first's kernel


def test_bytes_include_inputs_and_outputs_of_operations():
    _, moved = step_cost.flops_and_bytes(convolutions(frozen=True), 4)
    assert moved >= 4 * (8 * 8 * 3 + 8 * 8 * 5)


def test_the_whole_loop_stops_between_its_turns(tiny_config):
    config = changed(tiny_config, "schedule", train_steps=1000, eval_every=10**9, summary_every=2, steps_per_loop=2)
    config = changed(config, "runtime", quiet=True)
    contestant = contestants.whole_loop(config)
    next(contestant)
    turn = contestant.send(4)
    assert turn.images == 4 * config.data.batch_size
    assert turn.seconds > 0
    with open(f"{tiny_config.runtime.workdir}/metrics.csv") as file:
        assert max(int(line.split(",")[0]) for line in file.readlines()[1:]) <= contestants.WARM_UP + 4


@pytest.mark.parametrize("name", ["petseg_input", "tutorial_input", "evaluation", "forward_pass", "prediction"])
def test_a_turn_counts_its_images(name, tiny_config):
    contestant = contestants.CONTESTANTS[name](tiny_config)
    next(contestant)
    turn = contestant.send(3)
    assert turn.images == (3 * 8 if "input" in name or name == "prediction" else 10)


def benchmark(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "petseg.benchmark", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_the_program_prints_tables_and_writes_numbers(data_dir, tmp_path):
    file = tmp_path / "numbers.json"
    flags = [*tiny_flags(data_dir, tmp_path / "run"), "--rounds=2", "--steps=2", f"--output={file}"]
    done = benchmark(*flags, "--measure=input")
    assert done.returncode == 0, done.stderr
    assert "| petseg's input |" in done.stdout
    groups = json.loads(file.read_text())["groups"]
    assert [row["title"] for row in groups["input"]] == ["petseg's input", "the tutorial's input"]
    for row in groups["input"]:
        assert len(row["images_per_second"]) == 2
        assert min(row["images_per_second"]) > 0


@pytest.mark.slow
def test_programs_are_measured_outside_a_checkout(data_dir, tmp_path):
    flags = [*tiny_flags(data_dir, tmp_path / "run"), "--measure=programs", "--rounds=1"]
    done = subprocess.run(
        [sys.executable, "-m", "petseg.benchmark", *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "| train.py --help |" in done.stdout
    assert "| train.py until the first step is done |" in done.stdout


def test_the_limit_table_states_the_share_of_the_machines_speed():
    rows = [
        {"images_per_second": [9.0, 10.0, 20.0], "flops_per_image": 2e9, "bytes_per_image": 1e8},
        {"images_per_second": [4e10]},
        {"images_per_second": [1e10]},
    ]
    _, _, operations, moved = program.limit_table(rows).splitlines()
    assert operations.endswith("| 2.00 G | 20.0 G/s | 40.0 G/s (product of matrices) | 0.50 |")
    assert moved.endswith("| 0.10 G | 1.0 G/s | 10.0 G/s (copy in memory) | 0.10 |")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--measure=all"], "must be some of training, variants"),
        (["--dataset=synthetic_pets", "--train_split=nothing", "--measure=input"], "no split nothing"),
    ],
)
def test_invalid_flags_are_reported_in_one_line(flags, says, data_dir):
    done = benchmark(f"--data_dir={data_dir}", *flags)
    assert done.returncode == 2
    assert says in own_lines(done.stderr)[-1]
