"""Folds of a split for cross-validation: names, groups, membership, loading from every kind of data and cache."""

import collections
import random

import numpy as np
import pytest
import tensorflow as tf
from conftest import NUM_TRAIN, data_config
from made_folders import config as folder_config, pairs, save, write

from petseg.config import DataConfig, folds as fold_names
from petseg.data import catalog, check, folds, loading, overlaps
from petseg.data.check import CheckConfig, CheckOptions
from petseg.data.examples import BatchPosition
from petseg.errors import ConfigError, DataError

COUNT = 3
CODE = """
import numpy as np

class Films(list):
    classes = ["background", "object"]

def films(data_dir, split):
    order = range(12) if not data_dir.endswith("reversed") else range(11, -1, -1)
    mask = np.eye(40, 48, dtype=np.uint8)
    return Films({"image": np.full((40, 48, 3), 20 * i, np.uint8), "mask": mask, "name": f"film{i // 2}_{i}"}
                 for i in order)
"""


def parts(split, count=COUNT):
    return [f"{split}@fold{number}of{count}" for number in range(1, count + 1)]


def rest(fold):
    return fold.replace("@", "@without_")


@pytest.mark.parametrize("split", ["train@", "train@fold0of5", "train@fold6of5", "train@fold1of1", "a@fold1of5+b"])
def test_a_fold_that_cannot_be_is_refused(split):
    with pytest.raises(ConfigError, match=r"--eval_split=.*: must be SPLIT@foldKofN or SPLIT@without_foldKofN"):
        DataConfig(eval_split=split)


def test_names_of_folds_and_their_splits():
    fold = fold_names.parse("train[:9]+val@without_fold2of5")
    assert fold == ("train[:9]+val", 2, 5, True)
    assert str(fold) == "train[:9]+val@without_fold2of5"
    assert DataConfig(train_split=str(fold)).named_splits == {"train", "val", "test"}


def test_folds_hold_whole_groups_and_are_of_similar_size():
    groups = tuple(f"patient{i}" for i in range(23) for _ in range(1 + i % 4))
    numbers = folds.fold_numbers(groups, 5, 0)
    assert all(len(set(numbers[np.array(groups) == group])) == 1 for group in groups)
    assert set(collections.Counter(numbers.tolist()).values()) <= {11, 12}


def test_membership_depends_on_names_number_and_seed_not_on_the_order():
    groups = [f"p{i % 9}" for i in range(30)]
    shuffled = random.Random(0).sample(range(30), 30)
    for seed in (0, 1):
        numbers = folds.fold_numbers(tuple(groups), 4, seed)
        again = folds.fold_numbers(tuple(groups[i] for i in shuffled), 4, seed)
        np.testing.assert_array_equal(again, numbers[shuffled])
    other = folds.fold_numbers(tuple(groups), 4, 0)
    assert (other != numbers).any()
    # The same for ever, since runs and their folds are resumed and scored by later versions.
    assert folds.fold_numbers(tuple("abcdefg"), 3, 0).tolist() == [3, 1, 2, 3, 2, 1, 1]


def test_fewer_groups_than_folds_are_refused(data_dir):
    data_set = catalog.open_data(data_config("synthetic_pets", 32, data_dir, group_files="{group}/*"))
    with pytest.raises(DataError, match=r"--group_files=\{group\}/\*: does not match cat_train_0000.jpg; must"):
        data_set.num_examples("train@fold1of3")
    data_set = catalog.open_data(data_config("synthetic_pets", 32, data_dir, group_files="{group}_*"))
    message = (
        rf"split train: its {NUM_TRAIN} examples are 2 groups \(cat, dog\); must be at least 3, "
        "one for each fold"
    )
    with pytest.raises(DataError, match=message):
        data_set.num_examples("train@fold1of3")
    with pytest.raises(ConfigError, match=r"--group_files=patients: must contain \{group\}"):
        DataConfig(group_files="patients")


@pytest.mark.parametrize(
    ("name", "pattern", "group"),
    [
        ("images/train/p1_slice_2.png", "{group}_*", "p1"),
        ("images/train/p1_slice_2.png", "{group}_slice_*", "p1"),
        ("images/train/p1/2.png", "images/{split}/{group}/*", "p1"),
        ("a/b/p1/2.png", "**/{group}/*", "p1"),
        ("stack.tif#12", "", "stack.tif"),
        ("stack_b.tif#3", "{group}.tif", "stack_b"),
    ],
)
def test_groups_of_names(name, pattern, group):
    assert folds.group_of(name, DataConfig(group_files=pattern, pages="examples", dataset="folder")) == group


@pytest.mark.slow
def test_folds_divide_a_split_alike_in_all_caches(data_dir, array_record_dir, tmp_path):
    whole = {"memory": data_dir, "disk": data_dir, "none": array_record_dir}
    configs = {
        cache: data_config("synthetic_pets", 32, folder, cache=cache, cache_dir=str(tmp_path / "cache"))
        for cache, folder in whole.items()
    }
    expected = loading.load(configs["memory"], "train+test")
    data_set = catalog.open_data(configs["memory"])
    names = [data_set.names(fold) for fold in parts("train+test")]
    assert sorted(name for fold in names for name in fold) == sorted(expected.names)
    assert {len(fold) for fold in names} == {11, 12}
    for config in configs.values():
        for fold, members in (("train+test@fold2of3", names[1]), ("train+test@without_fold2of3", names[0] + names[2])):
            examples = loading.load(config, fold, for_training="without" in fold)
            assert sorted(examples.names) == sorted(members)
            assert examples.origin.endswith(f", {fold}")
            ids = [expected.names.index(name) for name in examples.names]
            for found, wanted in zip(examples.read(range(len(examples))), expected.read(ids), strict=True):
                np.testing.assert_array_equal(found, wanted)
    assert len(list((tmp_path / "cache").glob("*px-*[0-9a-f]"))) == 1  # all folds share it


def test_random_crops_of_a_fold_are_the_same_in_memory_and_on_disk(data_dir, tmp_path):
    batches = []
    for cache in ("memory", "disk"):
        config = data_config("synthetic_pets", 32, data_dir, cache=cache, cache_dir=str(tmp_path), resize="crop")
        examples = loading.load(config, "train@without_fold1of3", for_training=True)
        at = BatchPosition(tf.constant(5, tf.int64), tf.range(8, dtype=tf.int64), 8, 0)
        batches.append(examples.batch(tf.range(8, dtype=tf.int64), at).image.numpy())
    np.testing.assert_array_equal(*batches)


def test_splits_and_their_folds_overlap_by_position(data_dir):
    data_set = catalog.open_data(data_config("synthetic_pets", 32, data_dir))
    fold = "train@fold1of3"
    assert data_set.overlap(fold, rest(fold)).examples == 0
    assert data_set.overlap(fold, "train").examples == data_set.num_examples(fold) == NUM_TRAIN // 3
    assert data_set.overlap("train@fold2of3", rest(fold)).examples == NUM_TRAIN // 3


def test_groups_of_own_data_do_not_depend_on_its_order(tmp_path):
    (tmp_path / "films.py").write_text(CODE)
    found = []
    for order in ("", "reversed"):
        config = DataConfig(
            dataset=f"{tmp_path / 'films.py'}:films", data_dir=f"x{order}", image_size="32", group_files="{group}_*"
        )
        names = [sorted(loading.load(config, fold).names) for fold in parts("train")]
        assert sorted(name for fold in names for name in fold) == sorted(f"film{i // 2}_{i}" for i in range(12))
        films = [{name.split("_")[0] for name in fold} for fold in names]
        assert len(films[0] | films[1] | films[2]) == sum(map(len, films)) == 6
        found.append(names)
    assert found[0] == found[1]


@pytest.fixture
def root(tmp_path):
    names = [f"p{i}_{j}" for i in range(4) for j in range(3)]
    root = write(tmp_path / "mine", {**pairs(*names, folder="train/"), **pairs("p3_9", "p7_0", folder="test/")})
    (root / "classes.json").write_text('["sky", "sea", "sand"]')
    return root


def test_a_folder_is_divided_by_groups_and_copied_once(root):
    config = folder_config(root, image_size="32", group_files="{group}_*")
    data_set = catalog.open_data(config)
    members = [{name[13:15] for name in data_set.names(fold)} for fold in parts("train", 4)]
    assert sorted(members, key=sorted) == [{"p0"}, {"p1"}, {"p2"}, {"p3"}]
    first, others = (data_set.digests_of(split) for split in ("train@fold1of4", "train@without_fold1of4"))
    assert (len(first.pictures), len(set(first.pictures) & set(others.pictures))) == (3, 0)
    assert data_set.names_at("train@fold1of4", [1]) == (data_set.names("train@fold1of4")[1],)
    assert len([path for path in (root.parent / "cache").glob("folder/*") if path.is_dir()]) == 1


def test_a_picture_that_is_in_two_folds_is_reported(root, caplog):
    save(root / "images/train/p0_0.jpg", (root / "images/train/p1_0.jpg").read_bytes())
    config = folder_config(root, group_files="{group}_*")
    data_set = catalog.open_data(config)
    (number,) = [fold for fold in parts("train", 4) if "images/train/p0_0.jpg" in data_set.names(fold)]
    overlaps.warn_of_shared_examples(data_set, rest(number), number)
    assert f"--eval_split={number}: 1 of its 3 examples are in --train_split={rest(number)} too" in caplog.text


def test_groups_in_two_splits_are_reported(root, caplog, capsys, tmp_path):
    config = folder_config(root, group_files="{group}_*")
    check.main(CheckConfig(config, CheckOptions(output_dir=str(tmp_path), overlays=0)))
    printed = capsys.readouterr().out
    assert "groups: 5, of 1 to 4 images\n" in printed
    assert "note: 1 groups (--group_files) are in two splits or more: p3\n" in printed
    overlaps.warn_of_shared_examples(catalog.open_data(config), "train", "test")
    assert "--eval_split=test: 1 of its groups (--group_files) are in --train_split=train too (p3)" in caplog.text


def test_added_pictures_divide_a_folder_anew(root):
    config = folder_config(root, image_size="32")
    before = catalog.open_data(config).names("train@fold1of4")
    write(root, pairs(*(f"p{i}_7" for i in range(9)), folder="train/"))
    after = catalog.open_data(config).names("train@fold1of4")
    assert (len(before), len(after)) == (3, 6)
