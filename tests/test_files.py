import errno
import json
import math
import os
import shutil

import pytest

from petseg import files
from petseg.errors import ConfigError, WorkDirectoryError


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR]
)
def test_a_file_that_cannot_be_written_is_named_with_the_reason(number):
    reason = os.strerror(number)
    with pytest.raises(WorkDirectoryError) as caught, files.explain_write_errors("run"):
        raise OSError(number, reason, "run/metrics.csv")
    assert str(caught.value) == f"run/metrics.csv: cannot be written: {reason}"
    naming = files.explain_write_errors("run", flag="--csv=run", error_class=ConfigError)
    with pytest.raises(ConfigError) as caught, naming:
        raise OSError(number, reason)
    assert str(caught.value) == f"--csv=run: run: cannot be written: {reason}"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EMFILE, errno.EPIPE, errno.ECONNRESET, None])
def test_other_errors_pass(number):
    error = OSError("decoder: broken data") if number is None else OSError(number, os.strerror(number))
    with pytest.raises(OSError) as caught, files.explain_write_errors("run"):  # noqa: PT011
        raise error
    assert caught.value is error


def test_a_full_disk_names_needed_and_free_space(tmp_path):
    free = shutil.disk_usage(tmp_path).free / 2**20
    naming = files.explain_write_errors(tmp_path / "not" / "there", needed=3 * 2**20)
    with pytest.raises(WorkDirectoryError, match=r"it takes 3\.0 MiB, \d+\.\d MiB are free$") as caught, naming:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert float(str(caught.value).split()[-4]) == pytest.approx(free, rel=0.5)


def test_a_disk_that_fills_up_while_writing_names_the_file(tmp_path):
    (tmp_path / "results.json.tmp").symlink_to("/dev/full")
    message = rf"^{tmp_path}/results\.json: cannot be written: No space left"
    with pytest.raises(WorkDirectoryError, match=message), files.explain_write_errors("run"):
        files.write_json(tmp_path / "results.json", {"loss": 1})


def test_a_written_file_and_its_new_folders_outlive_a_power_failure(tmp_path, disk_calls):
    folder = tmp_path / "run" / "results"
    files.write_bytes(folder / "a.json", b"1")
    assert disk_calls == [
        ("fsync", str(tmp_path)), ("fsync", str(folder.parent)),
        ("fsync", f"{folder}/a.json.tmp"), ("replace", f"{folder}/a.json"), ("fsync", str(folder)),
    ]  # fmt: skip


def test_a_moved_folder_outlives_a_power_failure_with_all_that_is_in_it(tmp_path, disk_calls):
    (tmp_path / "made/variables").mkdir(parents=True)
    (tmp_path / "made/variables/a").write_bytes(b"1")
    files.move(tmp_path / "made", tmp_path / "model")
    made = str(tmp_path / "made")
    assert sorted(disk_calls[:3]) == [("fsync", made), ("fsync", f"{made}/variables"), ("fsync", f"{made}/variables/a")]
    assert disk_calls[3:] == [("replace", str(tmp_path / "model")), ("fsync", str(tmp_path))]


def test_a_file_system_that_syncs_no_folders_will_do(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    number = errno.EINVAL
    files.sync(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.sync(tmp_path)


def test_json_is_read_back_with_its_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"iou": {"pet": math.nan, "border": 0.5}})
    assert files.read_json(tmp_path / "a.json")["iou"]["border"] == 0.5
    assert math.isnan(files.read_json(tmp_path / "a.json")["iou"]["pet"])
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_file_of_the_longest_name_is_written_whole(tmp_path):
    for name in ("猫" * 85, "n" * 252, "n" * 255):
        files.write_bytes(tmp_path / name, b"1")
        files.write_bytes(tmp_path / name, b"2")
        assert (tmp_path / name).read_bytes() == b"2"
    assert len(list(tmp_path.iterdir())) == 3


def test_nan_and_infinities_at_any_depth_are_null(tmp_path):
    value = {"interval": [math.nan, 0.5], "rows": [{"iou": math.inf}, (1, -math.inf)], "names": ["a"], "none": None}
    files.write_json(tmp_path / "a.json", value)
    text = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert text == {"interval": [None, 0.5], "rows": [{"iou": None}, [1, None]], "names": ["a"], "none": None}
    low, high = files.read_json(tmp_path / "a.json")["interval"]
    assert math.isnan(low)
    assert high == 0.5
