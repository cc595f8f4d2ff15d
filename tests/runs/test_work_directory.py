import json
import re
import subprocess
import sys

import pytest
from conftest import changed

from petseg import config as config_lib
from petseg.classes import PETS, Classes
from petseg.config import CONFIG_FORMAT, Config
from petseg.errors import WorkDirectoryError
from petseg.runs.work_directory import WorkDirectory


def test_config_json_holds_what_is_needed_to_repeat_the_run(tmp_path):
    workdir = WorkDirectory.for_training(str(tmp_path / "run"), "pets")
    assert not workdir.path.exists()  # nothing is left behind before the run starts
    config = changed(Config(), "data", batch_size=3)
    workdir.save_config(config, classes=PETS, class_weights=(0.5, 0.25, 0.25), devices=["/device:CPU:0"])
    record = json.loads(workdir.config_file.read_text())
    assert record["devices"] == ["/device:CPU:0"]
    assert re.fullmatch(r"2\.\d+\.\d+", record["versions"]["tensorflow"])
    assert "git_commit" in record
    assert workdir.load_config() == config
    assert workdir.load_class_weights() == (0.5, 0.25, 0.25)


def test_without_a_workdir_a_new_folder_under_runs_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = WorkDirectory.for_training("", "oxford_iiit_pet:4.0.0").path
    assert re.fullmatch(r"runs/\d{8}-\d{6}-oxford_iiit_pet-4.0.0", str(path))
    assert not (tmp_path / "runs").exists()


def test_unusable_folders_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("")
    for path, message in [
        (file, "is a file; must be a folder"),
        (file / "below", "cannot be written to"),
        ("/proc/petseg", "cannot be written to"),
        (full, "holds other files but no config.json"),
    ]:
        with pytest.raises(WorkDirectoryError, match=f"--workdir={path}: {message}"):
            WorkDirectory.for_training(str(path), "pets")


def test_a_path_that_is_not_utf_8_is_refused():
    with pytest.raises(WorkDirectoryError, match=r"--workdir=runs/caf\\xe9: must be a path in UTF-8"):
        WorkDirectory.for_training("runs/caf\udce9", "pets")


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run", "hdfs://host:1/run"])
def test_cloud_storage_addresses_are_refused(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkDirectoryError, match=f"--workdir={address}: must be a folder.*rsync"):
        WorkDirectory.for_training(address, "pets")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        f'{{"format": {CONFIG_FORMAT}, "config": {{"data": {{"batchsize": 3}}}}}}',
        f'{{"format": {CONFIG_FORMAT}, "config": [], "class_weights": null}}',
        f'{{"format": {CONFIG_FORMAT}, "config": {{"runtime": 3}}, "class_weights": null}}',
    ],
)
def test_a_garbled_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WorkDirectoryError, match=r"config\.json: not a config that can be read"):
        WorkDirectory(tmp_path).load_config()


def test_a_config_of_another_format_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 99, "config": {}}')
    with pytest.raises(WorkDirectoryError, match="has format 99"):
        WorkDirectory(tmp_path).load_config()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(WorkDirectoryError, match="no run is here"):
        WorkDirectory(tmp_path).load_config()


def test_the_lock_refuses_a_second_process_and_is_removed(tmp_path):
    workdir = WorkDirectory(tmp_path / "run")
    with workdir.locked():
        script = (
            f"from petseg.runs.work_directory import WorkDirectory as W; W({str(workdir.path)!r}).locked().__enter__()"
        )
        second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert f"--workdir={workdir.path}: another process is training here" in second.stderr
    assert not workdir.path.exists()  # nothing was begun
    with workdir.locked():
        workdir.save_config(Config(), classes=PETS, class_weights=None, devices=[])
    assert [path.name for path in workdir.path.iterdir()] == ["config.json"]


def test_resuming_allows_some_changes_and_refuses_others_by_name(tmp_path):
    workdir = WorkDirectory(tmp_path)
    workdir.save_config(Config(), classes=PETS, class_weights=None, devices=[])
    longer = changed(changed(Config(), "schedule", epochs=30), "runtime", workdir="elsewhere")
    assert workdir.reconcile(longer) == {"epochs": (20, 30)}
    other = config_lib.from_dict({"data": {"batch_size": 8}, "runtime": {"seed": 4}})
    with pytest.raises(WorkDirectoryError, match=r"--batch_size was 64, is now 8; --seed was 0, is now 4"):
        workdir.reconcile(other)


@pytest.mark.parametrize(
    ("split", "name"),
    [
        ("test", "test-7.json"),
        ("train[:90%]", "train.start-90pct-7.json"),
        ("train[90%:]", "train.90pct-end-7.json"),
        ("train[10:20]+test", "train.10-20+test-7.json"),
        ("a/../b", "a_.._b-7.json"),
    ],
)
def test_results_files_have_safe_names(tmp_path, split, name):
    assert WorkDirectory(tmp_path).results_file(split, 7) == tmp_path / "results" / name


def test_resuming_allows_other_display_colours_but_not_other_values(tmp_path):
    def classes(color, value):
        return Classes.from_dict([{"name": "sky", "value": value, "color": color}, {"name": "sea", "value": 9}])

    workdir = WorkDirectory.for_training(str(tmp_path / "run"), "folder")
    workdir.save_config(Config(), classes=classes([1, 1, 1], 0), class_weights=None, devices=[])
    workdir.check_classes(classes([2, 2, 2], 0))
    with pytest.raises(WorkDirectoryError, match="whose classes are sky, sea, but with other values"):
        workdir.check_classes(classes([1, 1, 1], 1))
