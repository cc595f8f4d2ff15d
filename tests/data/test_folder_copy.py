import os
import random
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from made_folders import config, mask, pairs, picture, save, write
from PIL import Image

from petseg.classes import Classes
from petseg.data.folders import folder_copy, pair_files
from petseg.errors import ConfigError, DataError

ABC = '{"classes": ["a", "b", "c"]}'


@pytest.fixture
def root(tmp_path):
    """Three training pairs and two test pairs, with a classes file."""
    write(tmp_path / "mine", {**pairs("b", "a", "c", folder="train/"), **pairs("d", "e", folder="test/")})
    (tmp_path / "mine" / "classes.json").write_text(ABC)
    return tmp_path / "mine"


def examples(builder, split):
    return list(builder.as_dataset(split=split).as_numpy_iterator())


def names(builder, split):
    return [example["file_name"].decode() for example in examples(builder, split)]


def test_a_folder_is_a_data_set_with_splits_and_slices_in_the_order_of_names(root):
    builder, classes = folder_copy.prepare(config(root))
    assert classes.names == ("a", "b", "c")
    assert names(builder, "train") == [f"images/train/{name}.jpg" for name in "abc"]
    assert names(builder, "train[1:]+test[:50%]") == [f"images/{name}.jpg" for name in ("train/b", "train/c", "test/d")]
    (first, _) = examples(builder, "test")
    np.testing.assert_array_equal(first["segmentation_mask"][..., 0], mask())
    assert first["image"].shape == (12, 16, 3)
    assert builder.info.full_name.startswith("folder/mine-")


def test_nothing_is_said_in_the_words_of_tfds(root, caplog, capfd):
    with caplog.at_level("WARNING"):
        folder_copy.prepare(config(root))
    assert not caplog.messages
    assert not capfd.readouterr().out


def test_masks_in_colours_lie_in_the_data_set_as_class_ids(root):
    colors = np.array([[0, 0, 0], [9, 0, 0], [9, 9, 9]], np.uint8)
    for file in root.glob("masks/*/*"):
        save(file, colors[mask()])
    classes = Classes.from_dict([{"name": f"c{i}", "value": color} for i, color in enumerate(colors.tolist())])
    builder, same = folder_copy.prepare(config(root), classes)
    assert same is classes
    np.testing.assert_array_equal(examples(builder, "train")[0]["segmentation_mask"][..., 0], mask())


def test_a_later_start_opens_no_file(root, monkeypatch):
    folder_copy.prepare(config(root))
    monkeypatch.setattr(Image, "open", None)
    monkeypatch.setattr(pair_files, "read_bytes", None)
    builder, _ = folder_copy.prepare(config(root))
    assert len(names(builder, "train")) == 3


def test_the_user_s_folder_may_be_read_only(root):
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    folder_copy.prepare(config(root))
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*")} == before
    assert {file.name for file in (root.parent / "cache").iterdir()} == {"folder"}  # neither a lock nor downloads


def change_time(root):
    os.utime(root / "masks/train/a.png", (1, 1))


def change_classes(root):
    (root / "classes.json").write_text(ABC.replace('"c"', '"other"'))


def remove_pair(root):
    (root / "masks/train/a.png").unlink()
    (root / "images/train/a.jpg").unlink()


def change_display_colour_and_foreground(root):
    colored = ABC.replace('"c"', '{"name": "c", "color": [9, 9, 9], "foreground": true}')
    (root / "classes.json").write_text(colored)


def touch_nothing_of_it(root):
    (root / "notes.txt").write_text("")


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (change_time, 1),
        (change_classes, 1),
        (remove_pair, 1),
        (change_display_colour_and_foreground, 0),
        (touch_nothing_of_it, 0),
    ],
)
def test_what_changes_makes_another_data_set(root, change, differs):
    before, _ = folder_copy.prepare(config(root))
    change(root)
    after, _ = folder_copy.prepare(config(root))
    assert (before.info.full_name != after.info.full_name) == differs


def test_a_display_colour_that_was_edited_is_that_of_the_classes_though_the_copy_is_an_older_one(root):
    folder_copy.prepare(config(root))
    change_display_colour_and_foreground(root)
    assert folder_copy.prepare(config(root))[1].members[2].color == (9, 9, 9)


def test_classes_that_nobody_names_are_found_and_known_at_a_later_start_without_reading_masks(
    root, caplog, monkeypatch
):
    (root / "classes.json").unlink()
    for _ in range(2):
        with caplog.at_level("INFO", logger="petseg"):
            _, classes = folder_copy.prepare(config(root))
        assert classes.names == ("class_0", "class_1", "class_2")
        assert "classes as found in the masks: class_0 to class_2, for 0 to 2, or 255 (in no class)" in caplog.text
        caplog.clear()
        monkeypatch.setattr(pair_files, "read_bytes", None)


def test_the_flag_goes_before_the_folder_s_own_classes(root, tmp_path):
    (tmp_path / "other.json").write_text('["x", "y", "z"]')
    assert folder_copy.prepare(config(root, classes=str(tmp_path / "other.json")))[1].names == ("x", "y", "z")


def test_one_line_names_the_first_fault_how_many_more_and_the_command_that_tells_all(root):
    save(root / "images/test/e.jpg", picture(20, 20))
    save(root / "masks/train/b.png", mask(0, 9))
    save(root / "masks/train/c.png", b"")
    with pytest.raises(DataError) as caught:
        folder_copy.prepare(config(root))
    text = str(caught.value)
    assert text.startswith(
        f"{root}: masks/train/b.png: holds value 9 in no class (96 pixels, the first at row 0, column 1)"
    )
    assert f"; and 2 more faults. Everything: python -m petseg.data.check --dataset=folder --data_dir={root}" in text
    assert "\n" not in text
    assert not [file for file in (root.parent / "cache").rglob("*") if file.is_file()]


def test_a_file_that_the_system_does_not_give_is_named(root):
    (root / "masks/train/b.png").unlink()
    (root / "masks/train/b.png").mkdir()
    with pytest.raises(DataError, match=r"masks/train/b.png: cannot be read: Is a directory; must be a whole picture"):
        folder_copy.prepare(config(root))


def test_an_error_of_tensorflow_while_it_is_written_is_one_line(root, monkeypatch):
    def full_disk(self, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "the disk\nis full")

    monkeypatch.setattr(folder_copy._Folder, "download_and_prepare", full_disk)
    with pytest.raises(DataError, match=rf"^{root}: cannot be written as a data set into .*the disk is full"):
        folder_copy.prepare(config(root))


def test_a_missing_partner_is_told_before_a_file_is_opened(root, monkeypatch):
    (root / "masks/train/b.png").unlink()
    monkeypatch.setattr(pair_files, "read_bytes", None)
    with pytest.raises(
        DataError, match=r"images/train/b.jpg: has no mask; must be masks/train/b.png. Everything: python"
    ):
        folder_copy.prepare(config(root))


@pytest.mark.parametrize("named", [True, False])
def test_masks_of_0_and_255_are_told_the_classes_file_to_write(root, named):
    for file in root.glob("masks/*/*"):
        save(file, mask(0, 255))
    if not named:
        (root / "classes.json").unlink()
    with pytest.raises(
        DataError, match=r'255.*must be \{"classes": \[\{"name": "background", "value": 0\}, '
    ) as caught:
        folder_copy.prepare(config(root))
    assert "\n" not in str(caught.value)


def test_a_cache_folder_that_cannot_be_written(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^--cache_dir=.*file: .*cannot be written"):
        folder_copy.prepare(config(root, cache_dir=str(tmp_path / "file")))


def test_a_run_that_prepares_its_folder_draws_the_same_random_numbers_as_one_that_finds_it(root):
    numbers = []
    for _ in range(2):
        random.seed(0)
        folder_copy.prepare(config(root))
        numbers.append(random.random())
    assert numbers[0] == numbers[1]


AT_ONCE = """
import os, random, sys
from petseg.config import DataConfig
from petseg.data.folders import folder_copy

config = DataConfig(dataset="folder", data_dir=sys.argv[1], cache_dir=sys.argv[2])
processes = []
for _ in range(3):
    process = os.fork()
    if not process:
        random.seed(0)
        os._exit(folder_copy.prepare(config)[0].info.splits["train"].num_examples)
    processes.append(process)
print([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes])
"""


@pytest.mark.slow
def test_processes_that_start_at_once_prepare_it_once(root, tmp_path):
    command = [sys.executable, "-c", AT_ONCE, str(root), str(tmp_path / "cache")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.stdout == "[3, 3, 3]\n", result.stderr
