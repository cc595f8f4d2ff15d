"""The benchmark: turns of the contestants, tables, and the program."""

import contextlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, changed, own_lines, tiny_flags

from petseg.benchmark import __main__ as program, contestants


@pytest.mark.slow
def test_the_whole_loop_stops_between_its_turns(tiny_config):
    config = changed(tiny_config, "schedule", train_steps=1000, eval_every=10**9, summary_every=2, steps_per_loop=2)
    config = changed(config, "runtime", quiet=True)
    work = contestants.whole_loop(config)
    for steps in (2, 4):
        work(steps)
    with open(f"{tiny_config.runtime.workdir}/metrics.csv") as file:
        assert max(int(line.split(",")[0]) for line in file.readlines()[1:]) == 6


@pytest.mark.parametrize(
    "name", ["petseg_input", *(pytest.param(name, marks=pytest.mark.slow) for name in ("plain_loop", "fit_in_memory"))]
)
def test_a_turn_counts_its_images(name, tiny_config):
    sent, steps = [], iter([3])
    connection = SimpleNamespace(send=sent.append, recv=lambda: next(steps))
    options = {"jit_compile": False} if name == "fit_in_memory" else {}
    with pytest.raises(StopIteration):  # no further turn
        contestants.serve(connection, name, changed(tiny_config, "runtime", deterministic=False), options)
    ready, turn = sent
    assert ready["ready_after"] > 0
    assert turn["images"] == 3 * 8
    assert turn["seconds"] > 0


def benchmark(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "petseg.benchmark", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_contestants_take_turns_and_are_compared_with_the_first(monkeypatch, tiny_config):
    log = []

    @contextlib.contextmanager
    def worker(title, target, name, config, options):
        turns = iter([{"images": 100, "seconds": seconds, "memory/host": 50.0} for seconds in (1.0 + len(log), 2.0)])
        facts = iter([{"ready_after": 3.0}])
        log.append(title)
        yield SimpleNamespace(
            send=lambda steps: log.append((title, steps)), receive=lambda: next(facts, None) or next(turns)
        )

    monkeypatch.setattr(program.processes, "worker", worker)
    rows = program.race(tiny_config, 2, 7)
    titles = ["whole loop", "bare compiled step", "model.fit", "model.fit, jit_compile=False"]
    assert log == [*titles, *((title, 7) for _ in range(2) for title in titles)]
    assert [row["images_per_second"] for row in rows] == [[100, 50], [50, 50], [pytest.approx(100 / 3), 50], [25, 50]]
    assert rows[1]["first_over_this"] == [2, 1]
    assert (
        program.speed_table(rows).splitlines()[2]
        == "| whole loop | 75.0 (50.0 to 100.0) | 1.00 (1.00 to 1.00) | 1.00 | 50 | 3 |"
    )


@pytest.mark.soak
def test_the_program_prints_tables_and_writes_numbers(data_dir, tmp_path):
    file = tmp_path / "numbers.json"
    flags = [*tiny_flags(data_dir, tmp_path / "run"), "--rounds=1", "--steps=2", f"--output={file}"]
    done = benchmark(*flags)
    assert done.returncode == 0, done.stderr
    assert "| whole loop |" in done.stdout
    rows = json.loads(file.read_text())["groups"]["training"]
    assert [row["title"] for row in rows][:3] == ["whole loop", "bare compiled step", "model.fit"]
    assert min(speed for row in rows for speed in row["images_per_second"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--measure=all"], "must be some of training, gpu, time_to, decoding, scaling"),
        (["--dataset=synthetic_pets", "--train_split=nothing"], "no split nothing"),
        (["--measure=gpu", "--report=nowhere/gpu.md"], "--report=nowhere/gpu.md: must be a .md file in a folder"),
    ],
)
def test_invalid_flags_are_reported_in_one_line(flags, message, data_dir):
    done = benchmark(f"--data_dir={data_dir}", *flags)
    assert done.returncode == 2
    assert message in own_lines(done.stderr)[-1]
