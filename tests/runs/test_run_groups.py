"""Flags that name several runs, and groups of runs."""

import json
from pathlib import Path

import pytest
from conftest import changed

from petseg import config as config_lib
from petseg.errors import ConfigError
from petseg.runs import run_groups


@pytest.fixture
def folder(tmp_path):
    """Two experiments: `a` with three seeds, `b` with one; and a run that stands for itself."""
    for name in ("a/seed-10", "a/seed-2", "a/seed-0", "b/seed-0", "single"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "a" / "notes").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}/single", ["single"]),
        ("{}/a", ["a/seed-0", "a/seed-2", "a/seed-10"]),
        ("{}/a/seed-2,{}/single", ["a/seed-2", "single"]),
        ("{}/*/seed-0", ["a/seed-0", "b/seed-0"]),
        ("{}/?", ["a/seed-0", "a/seed-2", "a/seed-10", "b/seed-0"]),
        ("{}/missing", ["missing"]),  # opening it fails
        ("", []),
    ],
)
def test_runs_are_named_by_their_folders_by_the_one_around_them_or_by_a_glob(folder, text, expected):
    found = run_groups.find_runs(text.replace("{}", str(folder)), "workdir")
    assert [str(run.path.relative_to(folder)) for run in found] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}/c*", r"--compare={}/c\*: matches no run; must name work directories"),
        ("{}/a,{}/a/seed-2", "each run must be named once; got {}/a/seed-2 twice"),
    ],
)
def test_globs_without_runs_and_duplicate_runs_are_refused(folder, text, message):
    with pytest.raises(ConfigError, match=message.replace("{}", str(folder))):
        run_groups.find_runs(text.replace("{}", str(folder)), "compare")


def test_several_runs_are_refused_where_a_single_run_is_required(folder):
    with pytest.raises(ConfigError, match=r"--workdir=.*/a: must be one run; holds 3"):
        run_groups.find_single_run(f"{folder}/a", "workdir")
    assert run_groups.find_single_run(f"{folder}/b", "workdir").path == folder / "b" / "seed-0"


def test_a_run_belongs_to_a_group_if_its_folder_is_named_by_its_seed(tiny_config):
    def group(workdir, seed):
        return run_groups.group_folder(changed(tiny_config, "runtime", workdir=workdir, seed=seed))

    assert group("runs/a/seed-3", 3) == Path("runs/a")
    assert group("runs/a/seed-3", 4) is None
    assert group("runs/a", 0) is None


def test_runs_of_a_group_that_differ_in_more_than_their_seed_are_warned_of(folder, tiny_config, caplog):
    for seed, rate in ((0, 0.1), (2, 0.1), (10, 0.2)):
        workdir = folder / "a" / f"seed-{seed}"
        config = changed(tiny_config, "runtime", workdir=str(workdir), seed=seed)
        values = config_lib.to_dict(changed(config, "optimizer", learning_rate=rate))
        record = {"format": config_lib.CONFIG_FORMAT, "config": values, "class_weights": None}
        (workdir / "config.json").write_text(json.dumps(record))
    run_groups.warn_of_different_recipes(run_groups.find_runs(str(folder / "a"), "workdir"))
    assert caplog.messages == [f"{folder}/a/seed-10 differs from {folder}/a/seed-0 in --learning_rate"]
