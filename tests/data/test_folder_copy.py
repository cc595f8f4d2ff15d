import json
import os
import random

import numpy as np
import programs_in_forks
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from made_folders import config, mask, pairs, picture, save, write
from PIL import Image

from petseg import files
from petseg.classes import Classes
from petseg.data import catalog, loading
from petseg.data.catalog import DataSet
from petseg.data.folders import folder_copy, folder_files
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


def test_messages_of_tfds_are_not_shown(root, caplog, capfd):
    with caplog.at_level("WARNING"):
        folder_copy.prepare(config(root))
    assert not caplog.messages
    assert not capfd.readouterr().out


def test_each_training_warns_where_255_may_be_a_class_and_without_a_classes_file_it_is_refused(root, caplog):
    for file in root.glob("masks/*/*"):
        mask_with_255 = mask()
        mask_with_255[2:9, 3:11] = 255
        save(file, mask_with_255)
    for _ in range(2):
        caplog.clear()
        loading.load(config(root, image_size="32"), "train", for_training=True)
        (line,) = [message for message in caplog.messages if "no class by convention" in message]
        assert "in 5 masks 255 covers compact regions, not lines (masks/train/a.png, " in line
    (root / "classes.json").unlink()
    with pytest.raises(DataError, match='a classes file must say what it is: a class with "value": 255') as caught:
        folder_copy.prepare(config(root))
    assert "\n" not in str(caught.value)


def test_masks_in_colours_are_stored_as_class_ids(root):
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
    monkeypatch.setattr(folder_files, "FileContent", None)
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
def test_changed_files_or_classes_make_another_copy(root, change, differs):
    before, _ = folder_copy.prepare(config(root))
    change(root)
    after, _ = folder_copy.prepare(config(root))
    assert (before.info.full_name != after.info.full_name) == differs


def test_a_display_colour_that_was_edited_is_that_of_the_classes_though_the_copy_is_an_older_one(root):
    folder_copy.prepare(config(root))
    change_display_colour_and_foreground(root)
    assert folder_copy.prepare(config(root))[1].members[2].color == (9, 9, 9)


def test_a_classes_file_that_gives_values_other_meanings_than_a_run_is_refused(root):
    for content, run, message in (
        ('["a", "c", "b"]', ABC, "value 1 in masks is c, but in the run it was b"),
        ('["a", "b", {"name": "c", "value": 255}]', '["a", "b"]', "value 255 in masks is c, but in the run it was no"),
    ):
        (root / "classes.json").write_text(content)
        with pytest.raises(ConfigError, match=rf"mine/classes\.json: {message}"):
            folder_copy.prepare(config(root), Classes.from_dict(json.loads(run)))
    for content, run in (('["x", "y", "z"]', '["class_0", "class_1", "class_2"]'), ('["a", "b", "c", "d"]', ABC)):
        (root / "classes.json").write_text(content)
        folder_copy.prepare(config(root), Classes.from_dict(json.loads(run)))


def test_inferred_classes_are_stored_so_that_a_later_start_reads_no_masks(root, caplog, monkeypatch):
    (root / "classes.json").unlink()
    for _ in range(2):
        with caplog.at_level("INFO", logger="petseg"):
            _, classes = folder_copy.prepare(config(root))
        assert classes.names == ("class_0", "class_1", "class_2")
        assert "classes as found in the masks: class_0 to class_2, for 0 to 2, or 255 (in no class)" in caplog.text
        caplog.clear()
        monkeypatch.setattr(folder_files, "FileContent", None)


def test_the_flag_takes_precedence_over_the_folder_s_classes_file(root, tmp_path):
    (tmp_path / "other.json").write_text('["x", "y", "z"]')
    assert folder_copy.prepare(config(root, classes=str(tmp_path / "other.json")))[1].names == ("x", "y", "z")


def test_one_line_names_the_first_fault_the_number_of_others_and_the_check_command(root):
    save(root / "images/test/e.jpg", picture(20, 20))
    save(root / "masks/train/b.png", mask(0, 9))
    save(root / "masks/train/c.png", b"")
    with pytest.raises(DataError) as caught:
        folder_copy.prepare(config(root))
    text = str(caught.value)
    assert text.startswith(
        f"{root}: masks/train/b.png: holds value 9 in no class (96 pixels, the first at row 0, column 1)"
    )
    assert f"; and 2 more faults. All faults: python -m petseg.data.check --dataset=folder --data_dir={root}" in text
    assert "\n" not in text
    assert not [file for file in (root.parent / "cache").rglob("*") if file.is_file()]


def test_an_unreadable_file_is_named(root):
    (root / "masks/train/b.png").unlink()
    (root / "masks/train/b.png").mkdir()
    with pytest.raises(DataError, match=r"masks/train/b.png: cannot be read: Is a directory; must be a complete image"):
        folder_copy.prepare(config(root))


def test_an_error_of_tensorflow_while_it_is_written_is_one_line(root, monkeypatch):
    def full_disk(self, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "the disk\nis full")

    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "download_and_prepare", full_disk)
    with pytest.raises(DataError, match=rf"^{root}: cannot be written as a data set into .*the disk is full"):
        folder_copy.prepare(config(root))


def test_all_files_of_a_copy_are_on_the_disk_before_it_gets_its_name(root, monkeypatch):
    synced = {}
    monkeypatch.setattr(files, "sync_tree", lambda folder: synced.update({folder: sorted(os.listdir(folder))}))
    builder, _ = folder_copy.prepare(config(root))
    ((folder, names),) = synced.items()
    assert "incomplete" in folder.name
    assert names == sorted(os.listdir(builder.data_path))


def test_a_missing_mask_is_reported_before_a_file_is_opened(root, monkeypatch):
    (root / "masks/train/b.png").unlink()
    monkeypatch.setattr(folder_files, "FileContent", None)
    with pytest.raises(
        DataError, match=r"images/train/b.jpg: has no mask; must be masks/train/b.png. All faults: python"
    ):
        folder_copy.prepare(config(root))


@pytest.mark.parametrize("named", [True, False])
def test_the_error_of_masks_of_0_and_255_shows_the_classes_file_to_write(root, named):
    for file in root.glob("masks/*/*"):
        save(file, mask(0, 255))
    if not named:
        (root / "classes.json").unlink()
    with pytest.raises(
        DataError, match=r'255.*must be \{"classes": \[\{"name": "background", "value": 0\}, '
    ) as caught:
        folder_copy.prepare(config(root))
    assert "\n" not in str(caught.value)


def test_a_cache_folder_that_cannot_be_written_is_one_line(root, tmp_path):
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
    result = programs_in_forks.run("-c", AT_ONCE, root, tmp_path / "cache", timeout=120)
    assert result.stdout == "[3, 3, 3]\n", result.stderr


def test_names_that_are_not_utf_8_are_examples_like_others(root):
    os.rename(root / "images/train/a.jpg", os.fsencode(root) + b"/images/train/caf\xe9.jpg")
    os.rename(root / "masks/train/a.png", os.fsencode(root) + b"/masks/train/caf\xe9.png")
    builder, _ = folder_copy.prepare(config(root))
    assert "images/train/caf\\xe9.jpg" in names(builder, "train")


def test_a_folder_name_may_be_not_utf_8(root):
    other = os.fsdecode(os.fsencode(root.parent) + b"/caf\xe9")
    os.rename(root, other)
    builder, _ = folder_copy.prepare(config(root, data_dir=other))
    assert len(names(builder, "train")) == 3


def add_split(root, split, *, bad):
    """A split of two pairs, one of them with a value in no class."""
    write(root, pairs("y", "z", folder=f"{split}/"))
    if bad:
        save(root / f"masks/{split}/z.png", mask(0, 77))


@pytest.mark.parametrize("found", [False, True])
def test_a_split_with_faults_is_left_out_unless_a_flag_names_it(root, caplog, found):
    add_split(root, "val", bad=True)
    save(root / "images/val/y.jpg", b"nothing")
    if found:
        (root / "classes.json").unlink()
        save(root / "masks/val/z.png", b"nothing")
    with caplog.at_level("WARNING", logger="petseg"):
        builder, _ = folder_copy.prepare(config(root))
    assert set(builder.info.splits) == {"train", "test"}
    assert "split val is left out: " in caplog.text
    assert len(names(builder, "train")) == 3
    again, _ = folder_copy.prepare(config(root))
    assert again.info.full_name == builder.info.full_name
    for flags in ({"eval_split": "val"}, {"eval_split": "test+val[:1]"}, {"train_split": "val"}):
        with pytest.raises(DataError, match=r"(images|masks)/val/[yz].*python -m petseg.data.check .*val"):
            folder_copy.prepare(config(root, **flags))


def test_a_split_with_faults_is_left_out_where_a_run_asks_for_classes_that_it_found(root):
    (root / "classes.json").unlink()
    add_split(root, "val", bad=True)
    save(root / "masks/val/y.png", b"nothing")
    _, classes = folder_copy.prepare(config(root))
    assert classes.names == ("class_0", "class_1", "class_2")
    builder, same = folder_copy.prepare(config(root), classes)
    assert same == classes
    assert "val" not in builder.info.splits
    with pytest.raises(DataError, match="masks/val"):
        folder_copy.prepare(config(root, eval_split="val"), classes)


def test_masks_of_a_split_that_no_flag_names_do_not_change_what_kind_of_classes_are_found(root):
    (root / "classes.json").unlink()
    write(root, pairs("z", folder="extra/"))
    save(root / "masks/extra/z.png", picture())
    builder, classes = folder_copy.prepare(config(root))
    assert classes.names == ("class_0", "class_1", "class_2")
    assert set(builder.info.splits) == {"train", "test"}


def test_a_split_of_unlabelled_images_is_left_out(root):
    write(root, {"images/extra/z.jpg": None})
    builder, _ = folder_copy.prepare(config(root))
    assert set(builder.info.splits) == {"train", "test"}
    data_set = DataSet("folder", builder, None)
    with pytest.raises(DataError, match=r"no split extra \(split extra is left out: images/extra/z.jpg: has no mask"):
        data_set.num_examples("extra")


def test_a_split_that_was_left_out_is_back_once_its_files_are_fixed(root):
    add_split(root, "val", bad=True)
    folder_copy.prepare(config(root))
    save(root / "masks/val/z.png", mask())
    builder, _ = folder_copy.prepare(config(root, eval_split="val"))
    assert len(names(builder, "val")) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--eval_split=test: {root} has no split test; must be one of train (3 pairs), val (2 pairs)"),
        ({"eval_split": "val+dev[:1]"}, "--eval_split=val+dev[:1]: {root} has no split dev; must be one of train"),
        ({"train_split": "training", "eval_split": "val"}, "--train_split=training: {root} has no split training"),
        ({"eval_split": "val[:x]"}, "--eval_split=val[:x]: folder: no split val[:x]"),
    ],
)
def test_a_missing_split_is_named_with_its_flag_and_the_existing_splits(root, flags, message):
    os.rename(root / "images/test", root / "images/val")
    os.rename(root / "masks/test", root / "masks/val")
    write(root, {"images/extra/z.jpg": None})  # an unlabelled split, which is not what is wrong
    with pytest.raises(DataError) as caught:
        catalog.open_with_splits(config(root, **flags))
    assert message.format(root=root) in str(caught.value)


def test_a_classes_file_that_is_a_broken_link_is_an_error(root):
    (root / "classes.json").unlink()
    (root / "classes.json").symlink_to("nowhere.json")
    with pytest.raises(ConfigError, match=r"classes.json: cannot be read"):
        folder_copy.prepare(config(root))
