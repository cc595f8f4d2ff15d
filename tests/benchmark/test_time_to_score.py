"""--measure=time_to: counted time, when a target is reached, tables."""

import json
import subprocess
import sys
import time

import pytest
from conftest import ROOT, changed, tiny_flags

from petseg.benchmark import __main__ as program, time_to_score, time_to_score_contestants
from petseg.benchmark.time_to_score import TimeToScoreConfig
from petseg.benchmark.time_to_score_contestants import Timer
from petseg.config import command_line
from petseg.errors import ConfigError, PetsegError


def test_scoring_time_is_excluded_and_a_target_must_hold_twice_in_a_row():
    logged = []
    timer = Timer(time.monotonic() - 5, 0.5, logged.append)
    timer.started(8)
    timer.started(16)
    for number, score in enumerate((0.6, 0.4, 0.5, 0.5)):
        assert not timer.reached
        timer.score(8 * number, lambda score=score: time.sleep(0.2) or score)
    assert timer.reached
    assert logged == timer.scores
    assert 5 <= timer.start_up <= timer.scores[-1]["seconds"] < 5.3
    result = timer.result(100, 3.0)
    assert (result["images"], result["operations"], timer.first_images) == (24, 72, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "images"), [(0.01, 32), (0.99, 48)])
def test_petsegs_loop_ends_where_the_target_held_twice_or_with_its_run(tiny_config, target, images):
    config = changed(tiny_config, "schedule", train_steps=6)
    timer = Timer(time.monotonic(), target, lambda score: None)
    result = time_to_score_contestants.whole_loop(config, TimeToScoreConfig(target=target, score_every=16), timer)
    assert result["reached"] == (target < 0.5)
    assert [score["images"] for score in result["scores"]] == list(range(16, images + 1, 16))
    assert result["images"] == images
    assert 0 < result["start_up"] < result["seconds"]
    assert result["operations"] > images * 1e5


@pytest.mark.slow
@pytest.mark.parametrize("fit_steps", [0, 2])
def test_model_fit_is_trained_to_the_target_or_its_speed_is_measured(tiny_config, fit_without_xla, fit_steps):
    config = changed(tiny_config, "schedule", train_steps=30)
    timer = Timer(time.monotonic(), 0.01, lambda score: None)
    options = TimeToScoreConfig(target=0.01, score_every=16, fit_steps=fit_steps)
    result = time_to_score_contestants.keras_fit(config, options, timer)
    assert result["reached"]
    assert result["computed"] == bool(fit_steps)
    assert [score["images"] for score in result["scores"]] == ([] if fit_steps else [16, 32])
    assert result["images"] == (30 * 8 if fit_steps else 32)
    assert result["start_up"] < result["whole_run"]
    assert fit_steps == 0 or result["seconds"] == result["whole_run"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"contestants": "missing"},
            r"--contestants=missing: must be model.fit, a file of flags, or one of the presets ",
        ),
        ({"contestants": "fast,fast"}, "--contestants=fast,fast: each must be named once"),
    ],
)
def test_unknown_or_repeated_contestants_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TimeToScoreConfig(**options).configs([])


def other_program(*lines, then=""):
    """A contestant that prints lines."""
    prints = "".join(f"print({line!r}, flush=True);" for line in lines)
    return f'{sys.executable} -c "{prints}{then}"'


def test_another_program_ends_when_its_scores_hold_the_target_and_stands_in_the_table():
    endless = "import time; time.sleep(600)"
    command = other_program("epoch 1", "10.5, 0.7", "20, .6", "30, 0.72", "40.25 , 0.75", then=endless)
    result = time_to_score.run_command("peer", command, 0.7)
    assert (result["reached"], result["seconds"], len(result["scores"])) == (True, 40.25, 4)
    assert "| peer | 40 |  |  |  | 0.7500 |" in time_to_score.table([{"title": "peer", **result}])
    result = time_to_score.run_command("peer", other_program("10, 0.7", "20, 0.8"), 0.9)
    assert (result["reached"], result["seconds"]) == (False, 20)


def test_at_the_end_of_a_run_one_score_reaches_the_target():
    result = time_to_score.run_command("peer", other_program("10, 0.7", "20, 0.8"), 0.8)
    assert (result["reached"], result["seconds"]) == (True, 20)
    timer = Timer(time.monotonic(), 0.5, lambda score: None)
    for number, score in enumerate((0.6, 0.4, 0.5)):
        timer.score(8 * number, lambda score=score: score)
    assert timer.result(100, 3.0)["reached"]
    assert timer.result(100, 3.0)["images"] == 16


@pytest.mark.parametrize(("target", "reached"), [(0.7, 4), (0.72, 2)])
def test_seconds_of_repeated_runs_are_averaged_without_the_extremes_and_all_must_reach_the_target(
    tmp_path, target, reached
):
    script = tmp_path / "train.py"
    script.write_text("import sys\nseed = int(sys.argv[1])\nprint(f'{10 + 10 * seed ** 2}, {0.7 + seed / 100}')\n")
    options = TimeToScoreConfig(target=target, repeats=4, contestants=f"peer={sys.executable} {script} {{seed}}")
    (row,) = time_to_score.race(options, [], tmp_path)
    assert [run["seconds"] for run in row["runs"]] == [10, 20, 50, 100]
    assert row["seconds"] == 35
    assert row["reached"] == (reached == 4)
    # Student's t of .70, .71, .72, .73: their mean less the target, over .0129 / 2.
    assert row["p_value"] == pytest.approx(0.051 if target == 0.7 else 0.752, abs=0.001)
    lines = time_to_score.table([row])
    assert f"| peer | {'35' if reached == 4 else 'never (35)'} |  |  |  | 0.7300 |" in lines
    assert f"peer: {reached} of 4 runs reached the target, last scores 0.7000 to 0.7300, mean 0.7150" in lines


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("nowhere/program", "--contestants=peer=nowhere/program: cannot be started: .*No such file"),
        ("", "--contestants=peer=: cannot be started"),
        (other_program("done"), "must print lines `SECONDS, MEAN_IOU` up to 1; printed no such line"),
        (other_program("10, 70.5"), "must print lines `SECONDS, MEAN_IOU` up to 1; printed 70.5"),
        (other_program("10, .5", then="exit(3)"), "its program failed with exit code 3"),
    ],
)
def test_programs_that_fail_or_print_no_score_are_refused(command, message):
    with pytest.raises(PetsegError, match=message):
        time_to_score.run_command("peer", command, 0.9)


def test_a_target_must_be_given():
    with pytest.raises(ConfigError, match="--target=0: must be above 0 with --measure=time_to"):
        command_line.parse(["benchmark", "--measure=time_to"], program.BenchmarkConfig)


def test_all_contestants_get_the_training_flags_of_the_command_line(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["benchmark", "--measure", "time_to", "--target=.7", "--data_dir", "x", "--seed=1"]
    )
    flags = program.training_flags(sys.argv)
    assert flags == ["--data_dir", "x", "--seed=1"]
    configs = TimeToScoreConfig(contestants="model.fit,best").configs(flags)
    assert [config.data.data_dir for config in configs.values()] == ["x", "x"]
    assert not configs["model.fit"].model.train_encoder
    assert configs["best"].model.train_encoder


def test_the_table_sets_seconds_against_all_epochs_of_model_fit():
    row = {"reached": True, "start_up": 20.0, "images": 100, "operations": 1e12, "computed": False, "whole_run": None}
    rows = [
        {**row, "title": "model.fit", "seconds": 3000.0, "whole_run": 3000.0, "computed": True, "scores": []},
        {**row, "title": "sprint", "seconds": 200.0, "scores": [{"mean_iou": 0.75}]},
        {**row, "title": "slow", "seconds": 900.0, "reached": False, "scores": [{"mean_iou": 0.5}]},
    ]
    lines = time_to_score.table(rows).splitlines()
    assert lines[3] == "| sprint | 200 | 20 | 100 | 1.00e+12 | 0.7500 | 0.067 |"
    assert lines[4] == "| slow | never (900) | 20 | 100 | 1.00e+12 | 0.5000 |  |"
    assert "model.fit was not trained to the end: 3000 s are extrapolated from its measured speed" in lines


@pytest.mark.soak
def test_the_program_prints_a_table(data_dir, tmp_path):
    flags = [*tiny_flags(data_dir, tmp_path / "run"), "--epochs=0", "--train_steps=6", "--batch_size=4"]
    (tmp_path / "adam.cfg").write_text("--optimizer=adam\n")
    asked = ["--measure=time_to", "--target=0.01", "--score_every=8", f"--contestants=model.fit,{tmp_path}/adam.cfg"]
    files = [f"--output={tmp_path / 'numbers.json'}", "--fit_steps=2"]
    done = subprocess.run(
        [sys.executable, "-m", "petseg.benchmark", *flags, *asked, *files],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| model.fit |" in done.stdout
    rows = json.loads((tmp_path / "numbers.json").read_text())["groups"]["time_to"]
    assert [row["reached"] for row in rows] == [True, True]
    assert rows[1]["images"] == 16
