"""Weight maps of folders and TFDS data sets: reading, faults, caches, resizing."""

import io
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import as_array_records, data_config
from made_folders import config, mask, pairs, picture, save, write
from PIL import Image
from test_loading import png, write_data_set

from petseg.classes import PETS
from petseg.config import DataConfig
from petseg.data import catalog, check, input_pipeline, loading
from petseg.data.check import CheckConfig, CheckOptions
from petseg.data.examples import BatchPosition
from petseg.data.folders import weight_map_survey
from petseg.data.resizing import Resizing
from petseg.errors import ConfigError, DataError

FILES = "weights/{split}/{name}.png"


def weight(seed=0, dtype=np.uint8, height=12, width=16):
    numbers = np.random.default_rng(seed).integers(0, np.iinfo(np.uint16).max, (height, width), np.uint16)
    return (numbers >> 8).astype(dtype) if dtype == np.uint8 else numbers.astype(dtype)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def folder(root, maps, **others):
    """A folder of two training pairs with weight maps by name, and a test pair."""
    write(root, {**pairs("a", "b", folder="train/"), **pairs("c", folder="test/")})
    save(root / "classes.json", b'["x", "y", "z"]')
    for path, content in {**maps, **others}.items():
        save(root / "weights" / path, content)
    return root


def two(end="png", make=lambda seed: weight(seed)):
    return {f"train/{name}.{end}": make(seed) for seed, name in enumerate("ab")}


def load(root, cache="memory", split="train", **values):
    values = {"weight_files": FILES, "image_size": "32", **values}
    return loading.load(config(root, cache=cache, **values), split, for_training=split == "train")


@pytest.mark.parametrize(
    ("end", "make"),
    [
        ("png", weight),
        ("png", lambda seed: weight(seed, np.uint16)),
        ("npy", lambda seed: npy(weight(seed, np.float32) / np.float32(1e4))),
        ("tif", lambda seed: Image.fromarray(weight(seed, np.float32) / np.float32(1e4))),
    ],
    ids=["8-bit", "16-bit", "npy", "tiff"],
)
@pytest.mark.parametrize("resize", ["stretch", pytest.param("letterbox", marks=pytest.mark.slow), "crop"])
def test_maps_reach_a_batch_as_they_are_from_every_cache(tmp_path, end, make, resize):
    root = folder(tmp_path / "data", two(end, make))
    found = {}
    for cache in ("memory", "disk", "none"):
        examples = load(root, cache, weight_files=f"weights/{{split}}/{{name}}.{end}", resize=resize)
        at = BatchPosition(tf.constant(3, tf.int64), tf.range(2, dtype=tf.int64), 2, 0)
        found[cache] = input_pipeline.part_of_batch(examples, at)
        if cache == "disk":
            portable = input_pipeline.part_of_batch(examples, at, portable=True)  # as a data service makes it
            np.testing.assert_array_equal(portable["weight"], found[cache]["weight"])
    for cache in ("disk", "none"):
        for key in ("image", "mask", "weight", "example_id"):
            np.testing.assert_array_equal(found["memory"][key], found[cache][key])
    batch = found["memory"]
    for i, number in enumerate(batch["example_id"].numpy().tolist()):
        stored = make(number)
        stored = np.load(io.BytesIO(stored)) if isinstance(stored, bytes) else np.array(stored)
        expected = Resizing((32, 32), resize).weight(tf.constant(stored[..., None])).numpy()
        assert batch["weight"].dtype == stored.dtype
        np.testing.assert_array_equal(batch["weight"][i], expected)
        assert (expected[batch["mask"][i].numpy() == 255] == 0).all()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (weight(height=13), r"train/b.png: is 13 x 16 \(height x width\), its mask masks/train/b.png 12 x 16; both"),
        (np.zeros((12, 16), np.uint8), "train/b.png: is 0 everywhere; must have a pixel that counts"),
        (np.zeros((12, 16, 3), np.uint8), "train/b.png: has 3 channels; a weight map must be grey"),
        (Image.fromarray(weight()).convert("P"), "train/b.png: has a palette of colours; a weight map must be grey"),
        (weight(1, np.uint16), "train/b.png: holds 16 bits, weights/train/a.png 8 bits; .* one depth"),
        (b"none", "train/b.png: cannot be read"),
    ],
    ids=["size", "zero", "colours", "palette", "depth", "unreadable"],
)
def test_maps_that_cannot_be_used_are_one_line_in_training_and_in_the_check(tmp_path, content, fault, capsys):
    root = folder(tmp_path / "data", {**two(), "train/b.png": content})
    with pytest.raises(DataError, match=rf"weights/{fault}.*python -m petseg.data.check .*--weight_files="):
        load(root)
    with pytest.raises(DataError, match="1 fault, printed above"):
        check.main(CheckConfig(config(root, weight_files=FILES), CheckOptions(overlays=0)))
    printed = capsys.readouterr().out
    kind = (
        "files that cannot be read" if isinstance(content, bytes) else "weight maps that are missing or cannot be used"
    )
    assert f"faults: 1 {kind}" in printed
    assert re.search(f"  weights/{fault}", printed)


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [(np.nan, "holds NaN or infinite values; must be finite"), (-1, "holds values below 0; must be at least 0")],
)
def test_float_maps_must_be_finite_and_not_negative(tmp_path, numbers, fault):
    maps = two("npy", lambda seed: npy(np.where(np.eye(12, 16) > 0, numbers if seed else 1, 0.5).astype(np.float32)))
    with pytest.raises(DataError, match=rf"weights/train/b\.npy: {fault}"):
        load(folder(tmp_path / "data", maps), weight_files="weights/{split}/{name}.npy")


def test_a_pair_without_a_map_is_a_fault_and_a_whole_evaluation_split_is_not(tmp_path, caplog):
    root = folder(tmp_path / "data", two())
    assert load(root).weights is not None
    assert load(root, split="test").weights is None
    assert "split test has no weight maps; its pixels weigh 1" in caplog.text
    with pytest.raises(DataError, match="--score_weights: folder, split test: has no weight maps"):
        load(root, split="test", score_weights=True)
    with pytest.raises(
        DataError, match=r"split train\+test has weight maps of several kinds .*train: uint8, test: none"
    ):
        load(root, split="train+test")
    (root / "weights" / "train" / "b.png").unlink()
    with pytest.raises(DataError, match=r"images/train/b\.jpg: has no weight map; must be weights/train/b\.png"):
        load(root)
    with pytest.raises(DataError, match=r"other/\{name\}\.png matches no weight map; --weight_files must say"):
        load(root, weight_files="other/{name}.png")


def test_changed_maps_are_another_copy_and_other_data(tmp_path):
    root = folder(tmp_path / "data", two())
    digests = [
        catalog.open_data(config(root, **values)).digests_of("train").masks for values in ({}, {"weight_files": FILES})
    ]
    assert (digests[0] != digests[1]).all()
    before = load(root).weights
    save(root / "weights" / "train" / "b.png", weight(7))
    after = load(root).weights
    assert [(one == other).all() for one, other in zip(before, after, strict=True)] == [True, False]


def test_maps_beside_masks_are_no_masks_or_images(tmp_path):
    root = write(tmp_path / "data", {f"{name}.png": picture(seed=i) for i, name in enumerate("ab")})
    for i, name in enumerate("ab"):
        save(root / f"{name}_mask.png", mask())
        save(root / f"{name}_weight.png", weight(i))
    save(root / "classes.json", b'["x", "y", "z"]')
    (root / "train.txt").write_text("a\nb\n")
    patterns = {"image_files": "*.png", "mask_files": "{name}_mask.png", "weight_files": "{name}_weight.png"}
    examples = load(root, **patterns, eval_split="train")
    assert list(examples.names) == ["a.png", "b.png"]
    assert examples.weights.shape == (2, 32, 32, 1)


def test_the_check_prints_ranges_and_draws_maps(tmp_path, capsys, caplog):
    root = folder(tmp_path / "data", two(make=lambda seed: np.eye(12, 16, dtype=np.uint8)))
    load(root)
    assert "the largest number in weight maps is 1, and 255 counts as 1; --weight_scale=1 would" in caplog.text
    check.main(CheckConfig(config(root, weight_files=FILES), CheckOptions(output_dir=str(tmp_path))))
    printed = capsys.readouterr().out
    assert "weight maps of train: 2 of 8 bits, 255 counts as 1; mean 0.000245, largest 0.00392" in printed
    assert (
        "note: split train: the largest number in weight maps is 1, and 255 counts as 1; --weight_scale=1 " in printed
    )
    sheet = np.asarray(Image.open(tmp_path / "data-overlays.jpg"))
    third = sheet[18:198, 8 + 2 * 242 : 8 + 3 * 242]
    assert (third[3:12, 3:12] > 200).all()
    assert (third[120:, 3:50] < 60).all()


IMAGE_MAP = tfds.features.Image(shape=(None, None, 1), dtype=np.float32)


@pytest.mark.parametrize(
    ("feature", "make"),
    [
        (
            tfds.features.Tensor(shape=(None, None), dtype=np.float32, encoding="zlib"),
            lambda i: weight(i, np.float32) / 9,
        ),
        (tfds.features.Tensor(shape=(12, 16, 1), dtype=np.uint16), lambda i: weight(i, np.uint16)[..., None]),
        (tfds.features.Image(shape=(None, None, 1)), lambda i: weight(i)[..., None]),
        (IMAGE_MAP, lambda i: weight(i, np.float32)[..., None] / np.float32(7)),
    ],
    ids=["tensor", "16-bit", "image", "float-image"],
)
def test_features_of_tfds_data_sets_are_maps(tmp_path, feature, make, capsys):
    pairs = [(png(picture(seed=i)), png(mask(1, 2, 3)), make(i)) for i in range(2)]
    names = ("image", "segmentation_mask", "certainty")
    write_data_set(tmp_path, pairs, "sure", names=names, others=(feature,))
    (tmp_path / "classes.json").write_text(
        '{"classes": [{"name": "x", "value": 1}, {"name": "y", "value": 2}, {"name": "z", "value": 3}]}'
    )
    values = {"weight_feature": "certainty", "classes": str(tmp_path / "classes.json"), "resize": "letterbox"}
    found = loading.load(data_config("sure", 32, tmp_path, **values), "train")
    expected = [
        Resizing((32, 32), "letterbox").weight(tf.constant(make(i).reshape(12, 16, 1))).numpy() for i in range(2)
    ]
    np.testing.assert_array_equal(found.weights, expected)
    arrays = as_array_records("sure", tmp_path, tmp_path / "arrays")
    on_demand = loading.load(data_config("sure", 32, arrays, cache="none", **values), "train")
    np.testing.assert_array_equal(on_demand.fetch(tf.constant([0, 1], tf.int64)).weight, expected)
    check.main(
        CheckConfig(
            data_config("sure", 32, tmp_path, train_split="train", eval_split="train", **values),
            CheckOptions(overlays=0),
        )
    )
    assert "weight maps of train: 2 of" in capsys.readouterr().out


def test_maps_of_tfds_data_sets_are_checked_when_they_are_decoded(tmp_path):
    feature = tfds.features.Tensor(shape=(None, None), dtype=np.float32, encoding="zlib")
    names = ("image", "segmentation_mask", "certainty")
    values = {"weight_feature": "certainty"}
    for name, bad, fault in (
        ("nan", np.full((12, 16), np.nan), "holds NaN"), ("low", -np.ones((12, 16)), "holds values below 0"),
        ("zero", np.zeros((12, 16)), "is 0 everywhere"),
    ):  # fmt: skip
        write_data_set(
            tmp_path,
            [(png(picture()), png(mask(1, 2, 3)), bad.astype(np.float32))],
            name,
            names=names,
            others=(feature,),
        )
        with pytest.raises(DataError, match=rf"{name}, split train, example 0 .*: the weight map {fault}"):
            loading.load(data_config(name, 32, tmp_path, **values), "train", PETS)
    pair = (png(picture()), png(mask(1, 2, 3)), np.ones((12, 15), np.float32))
    write_data_set(tmp_path, [pair], "size", names=names, others=(feature,))
    with pytest.raises(DataError, match=r"the mask is \(12, 16\) \(height, width\), its weight map \(12, 15\)"):
        loading.load(data_config("size", 32, tmp_path, **values), "train", PETS)
    with pytest.raises(
        DataError, match=r"--weight_feature=sure: is no array; must be uint8, .*all features: certainty"
    ):
        loading.load(data_config("size", 32, tmp_path, weight_feature="sure"), "train", PETS)
    with pytest.raises(DataError, match=r"--weight_feature=image: is uint8 \[None, None, 3\]; must be"):
        loading.load(data_config("size", 32, tmp_path, weight_feature="image"), "train", PETS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"dataset": "folder", "weight_files": "weights/a.png"},
            r"--weight_files=weights/a.png: must contain \{name\}",
        ),
        ({"weight_files": FILES}, "--weight_files=.*: must be empty without --dataset=folder"),
        ({"weight_files": "none"}, "--weight_files=none: must be empty without --dataset=folder"),
        ({"dataset": "a.py:f", "weight_files": FILES}, "--weight_files=.*: must be empty without --dataset=folder"),
        ({"dataset": "a.py:f", "weight_files": "none", "score_weights": True}, "--score_weights: must come with"),
        ({"dataset": "folder", "weight_feature": "sure"}, "--weight_feature=sure: must be empty with --dataset=folder"),
        ({"weight_scale": 3.0}, "--weight_scale=3: must come with --weight_files or --weight_feature"),
        ({"score_weights": True}, "--score_weights: must come with --weight_files or --weight_feature"),
    ],
)
def test_flags_that_contradict_each_other(values, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**values)


@pytest.mark.parametrize(
    ("largest", "scale", "is_noted"), [(255, 0, True), (255, 1, True), (255, 255, False), (9, 0, False)]
)
def test_32_bit_maps_of_0_to_255_are_a_note(largest, scale, is_noted):
    found = weight_map_survey.notes({"train": ("float32", largest)}, scale)
    assert any("--weight_scale=255 would make it 1" in note for note in found) == is_noted
