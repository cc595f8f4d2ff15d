"""Runs that lose power: every state in which a file system may be afterwards resumes to the same bits."""

import collections
import json
import os
import pickle
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import recorder
import recording_program
import tiny_run
from conftest import ROOT, events
from recorder import put
from short_trainings import built_once
from states import MODELS, CrashStates

from petseg.reporting import summaries
from petseg.runs import checkpoints, train
from petseg.runs.checkpoint_files import best_record, path_of, step_of

SHARE = 100
# What a run deletes unread, overwrites, or cuts back to its checkpoint.
UNREAD = re.compile(
    r"(^|/)(unfinished-\d+|[^/]*\.unfinished|incomplete\.[^/]*)/|\.(tmp|lock)$|^run/(lock$|figures|metrics\.csv$)|tfevents"
)


@pytest.fixture(scope="module")
def folder():
    """A folder in memory with the inputs of runs, which train in its folder `root`."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as made:
        tiny_run.write_inputs(Path(made) / "inputs")
        (Path(made) / "root").mkdir()
        yield Path(made)


def run_with_recorder(folder, share):
    """Records runs, unless it was done, and makes others on a disk that is full after each `share`-th write."""
    library = recorder.compiled(folder)
    if library is None:
        pytest.skip("the recorder of file changes needs Linux and a C compiler")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    program = subprocess.run(
        [sys.executable, recording_program.__file__, folder, str(share)],
        env={**os.environ, "PYTHONPATH": path, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
    )
    assert program.returncode == 0, program.stderr


@pytest.fixture(scope="module")
def recordings(folder):
    """Recordings of a run from its start, and of one that was interrupted and writes checkpoints in no thread."""
    run_with_recorder(folder, SHARE)
    with built_once(folder / "built-here"):
        yield pickle.loads((folder / "recordings").read_bytes())


def lost(run, marks, results):
    """What was reported as saved, but is not there."""
    steps = {
        name: [int(mark.split()[1]) for mark in marks if mark.startswith(name)] for name in ("checkpoints", "record")
    }
    newest = checkpoints.newest_intact(run / "checkpoints")
    best = best_record(run / "best") or {"step": -1}
    texts = [(run / "results" / f"test-{mark.split()[1]}.json") for mark in marks if mark.startswith("results")]
    faults = {
        "checkpoint": steps["checkpoints"] and (newest is None or step_of(newest) < steps["checkpoints"][-1]),
        "best checkpoint": steps["record"]
        and (best["step"] < steps["record"][-1] or checkpoints.damage(path_of(run / "best", best["step"]))),
        "results": not all(file.exists() and file.read_text() == results[file.name] for file in texts),
    }
    return [f"{what} lost" for what, is_lost in faults.items() if is_lost]


def as_seen(tree, run):
    """What a run reads of a state: states that agree in it need one resumed run."""
    newest = checkpoints.newest_intact(run / "checkpoints")
    step = step_of(newest) if newest else 0
    logged = {
        (name, tag): [each for each in steps if each <= step]
        for name in ("train", "eval", "final")
        if (run / name).is_dir()
        for tag, steps in events(run / name).items()
    }
    rows = [row for row in summaries.read_csv(run / "metrics.csv") if row[0] <= step]
    files = sorted((path, content) for path, content in tree.items() if content is not None and not UNREAD.search(path))
    return repr((files, rows, sorted(logged.items()) if step else ()))


def faults_of(folder, recording, count):
    """Tries states; returns seeds and models by fault, and the number of states that differ for a run."""
    root = folder / "root"
    put(recording.after, root, recording.times)
    expected = tiny_run.outcome(root / "run")
    assert expected["events"]["train"]["loss"] == [1, 2, 3, 4, 5, 6]
    states, faults, resumed = CrashStates(recording), collections.defaultdict(list), set()
    assert states.after(len(recording.changes)) == recording.after  # so nothing escaped the recorder
    for seed in range(count):
        model = MODELS[seed % len(MODELS)]
        at, tree = states.draw(seed, model)
        put(tree, root, recording.times)
        found = []
        try:
            found += lost(root / "run", recording.marks(at), expected["results"])
            if (key := as_seen(tree, root / "run")) not in resumed:
                resumed.add(key)
                train.train(tiny_run.config(folder / "inputs", root))
                now = tiny_run.outcome(root / "run")
                found += [f"other {what}" for what in expected if now[what] != expected[what]]
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
        for fault in found:
            faults[fault].append((model, seed, at))
    return dict(faults), len(resumed)


@pytest.mark.parametrize(
    "count", [pytest.param(60, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.soak)]
)
@pytest.mark.parametrize("number", [0, 1], ids=["from-the-start", "resumed"])
def test_all_states_after_a_power_cut_resume_to_the_same_bits(folder, recordings, number, count, record_property):
    faults, resumed = faults_of(folder, recordings[number], count)
    record_property("resumed", resumed)
    print(f"{count} states, {resumed} of them different for a run")
    assert not faults


@pytest.mark.parametrize(
    "share", [pytest.param(SHARE, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.soak)]
)
def test_a_disk_that_is_full_after_any_write_ends_the_run_in_one_line_and_it_resumes(folder, recordings, share):
    if share != SHARE:
        run_with_recorder(folder, share)
    ends = json.loads((folder / "full-disk").read_text())
    print(f"{len(ends)} runs: {collections.Counter(end.split(' ')[0] for end, _ in ends)}")
    expected = re.compile(r"2 [^\n]*(cannot be written)[^\n]*|finished|no write failed")
    assert [(i, *end) for i, end in enumerate(ends) if end[1] or not expected.fullmatch(end[0])] == []


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(folder, recordings, monkeypatch):
    root, now, jumps = folder / "root", time.time, random.Random(0)
    put(recordings[0].after, root, recordings[0].times)
    expected = tiny_run.outcome(root / "run")
    put({}, root, {})
    monkeypatch.setattr(time, "time", lambda: now() + jumps.uniform(-1e6, 1e6))
    for steps in (3, 6):
        train.train(tiny_run.config(folder / "inputs", root, f"--train_steps={steps}", "--checkpoint_every_minutes=60"))
    assert tiny_run.outcome(root / "run") == expected
