"""Data of the user's own code (--dataset=FILE.py:function): the same in all caches, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from petseg.classes import Classes
from petseg.config import DataConfig
from petseg.data import catalog, check, loading
from petseg.data.check import CheckConfig, CheckOptions
from petseg.errors import ConfigError, DataError, PetsegError
from petseg.runs.trained_run import weights_to_score

CODE = """
import io
import numpy as np
from PIL import Image

COUNTS = {"train": 12, "test": 5}

class Drawn:
    classes = ["background", "object"]

    def __init__(self, split, dtype="uint8", channels=3, as_files=False, wrong=None):
        self.count, self.split, self.dtype, self.channels = COUNTS[split], split, dtype, channels
        self.as_files, self.wrong = as_files, wrong or {}

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        rng = np.random.default_rng([len(self.split), i])
        mask = np.zeros((40 + i, 48), int)
        mask[i : i + 12, 5:30] = 1
        image = rng.integers(0, 40, (*mask.shape, self.channels)) + 180 * mask[..., None]
        example = {"image": (image / (255 if self.dtype == "float32" else 1)).astype(self.dtype), "mask": mask}
        if self.as_files:
            example = {key: png(value) for key, value in example.items()}
        return {**example, "name": f"{self.split}-{i}.x", **self.wrong.get(i, {})}

def png(array):
    file = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()

def tall():
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 40)).save(file, "JPEG", exif=exif)
    return file.getvalue()

def source(data_dir, split):
    return Drawn(split)

def files(data_dir, split):
    return Drawn(split, as_files=True)

def deep(data_dir, split):
    return Drawn(split, "uint16", 5)

def floats(data_dir, split):
    return Drawn(split, "float32", 3)

def weighted(data_dir, split):
    maps = [np.random.default_rng(i).integers(0, 9, (40 + i, 48)) for i in range(COUNTS[split])]
    return Drawn(split, wrong={i: {"weights": each.astype("uint16")} for i, each in enumerate(maps)})
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(CODE)
    return file


def config(own, name="source", **more):
    values = {"image_size": "32", "batch_size": 4, "cache_dir": str(own.parent / "cache"), **more}
    return DataConfig(dataset=f"{own}:{name}", **values)


@pytest.mark.parametrize(
    ("name", "resize"), [("files", "crop"), ("deep", "letterbox"), ("floats", "stretch"), ("weighted", "crop")]
)
def test_examples_are_the_same_in_all_caches_and_as_arrays_or_files(own, name, resize):
    read = {}
    for cache in ("memory", "disk", "none"):
        examples = loading.load(config(own, name, cache=cache, resize=resize), "train", for_training=True)
        read[cache] = list(examples.fetch(tf.range(12, dtype=tf.int64)).arrays().values())
        assert list(examples.names)[:2] == ["train-0.x", "train-1.x"]
    if name == "files":
        read["arrays"] = loading.load(config(own, resize=resize), "train", for_training=True).read(range(12))
    images, masks, *maps = (each.numpy() for each in read["memory"])
    for others in read.values():
        for mine, theirs in zip((images, masks, *maps), others, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert set(np.unique(masks)) <= {0, 1, 255}
    assert images.dtype == ("uint16" if name in ("deep", "floats") else "uint8")
    assert [(each.dtype, each.max()) for each in maps] == [("uint16", 8)] * (name == "weighted")
    assert images.shape[-1] == (5 if name == "deep" else 3)


def test_slices_of_splits_native_pairs_and_the_checker(own, capsys, tmp_path):
    assert loading.load(config(own), "train[:25%]+test[1:2]").names == (
        "train-0.x", "train-1.x", "train-2.x", "test-1.x",
    )  # fmt: skip
    (first, *_), pairs = list(loading.native_pairs(config(own), "test")), 5
    assert first[0].shape == (40, 48, 3)
    check.main(CheckConfig(config(own), CheckOptions(output_dir=str(tmp_path / "sheet"))))
    output = capsys.readouterr().out
    assert f"own.py:source: {12 + pairs} pairs; train 12, test 5" in output
    assert "nothing is wrong" in output
    assert (tmp_path / "sheet" / "own.py-source-overlays.jpg").exists()


def test_the_disk_cache_notices_other_code_other_examples_and_another_fingerprint(own):
    def mean():
        return loading.load(config(own, cache="disk"), "train").read(range(12))[0].mean()

    first = mean()
    own.write_text(CODE.replace("180 *", "100 *"))
    assert (second := mean()) < first
    (own.parent / "offset.txt").write_text("50")
    outside = CODE.replace("180 *", "int(open(__file__[:-6] + 'offset.txt').read()) *")
    own.write_text(outside)
    assert (third := mean()) < second
    (own.parent / "offset.txt").write_text("20")
    assert mean() < third
    own.write_text(outside.replace("classes =", "fingerprint = 1; classes ="))
    before = mean()
    (own.parent / "offset.txt").write_text("90")
    assert mean() == before  # the fingerprint says that nothing has changed
    own.write_text(outside.replace("classes =", "fingerprint = 2; classes ="))
    assert mean() > before


def made(wrong="{}", **attributes):
    more = "".join(f"    source.{name} = {value}\n" for name, value in attributes.items())
    return f"    source = Drawn(split, wrong={wrong})\n{more}    return source\n"


REFUSED = {
    "no source": ("    return None\n", "own.py:f, split train: returned NoneType; must be an object with __len__ and"),
    "a generator": ("    return (i for i in range(3))\n", "returned generator; must be an object with __len__"),
    "an exception": ("    return 1 / 0\n", "own.py:f, split train: failed: ZeroDivisionError: division by zero (line "),
    "no examples": (made(count="0"), "own.py:f: split train is empty"),
    "no dictionary": ("    return Pairs([(1, 2)])\n", "example 0: is (int, int); must be a dictionary with image"),
    "another key": (made("{0: {'label': 1}}"), "is a dictionary with image, mask, name, label; must be a dictionary"),
    "a list of pixels": (made("{0: {'image': [[1, 2]]}}"), "example 0: the image is list; must be an array of numbers"),
    "texts": (made("{0: {'mask': np.array([['a']])}}"), "the mask is numpy str"),
    "no image file": (made("{0: {'image': b'xyz'}}"), "example 0 (train-0.x): the image cannot be read"),
    "channels first": (made("{0: {'image': np.zeros((3, 40, 48))}}"), "the image got float64 [3, 40, 48]; must be"),
    "another size": (made("{0: {'mask': np.zeros((9, 9), int)}}"), "the image is (40, 48) (height, width), its mask"),
    "a mask as stored": (made("{0: {'image': tall()}}"), "the image is turned by EXIF to (48, 40) (height, width)"),
    "a class too many": (made("{0: {'mask': np.full((40, 48), 2)}}"), "(train-0.x): the mask holds value 2 in no"),
    "a later class": (made("{7: {'mask': np.full((47, 48), 2)}}"), "train-7.x"),
    "a later depth": (made("{7: {'image': np.zeros((47, 48, 3))}}"), "(train-7.x): the image has 3 channels of floats"),
    "a later exception": (made("{7: 1}"), "own.py:f, split train, example 7: failed: TypeError"),
    "NaN": (
        made("{7: {'image': np.full((47, 48, 3), np.nan, 'f4')}}, dtype='float32'"),
        "example 7 (train-7.x): the image holds NaN or infinite values in 2256 pixels",
    ),
    "a weight below 0": (made("{0: {'weights': np.full((40, 48), -1.0)}}"), "the weight map holds values below 0"),
    "a small map": (made("{i: {'weights': np.ones((9, 9))} for i in range(12)}"), "its weight map (9, 9); both must"),
    "a later map": (made("{7: {'weights': np.ones((47, 48))}}"), "(train-7.x): the weight map is float32; must be mis"),
    "no name": (made("{0: {'name': ''}}"), "example 0: its name is ''; must be a non-empty text"),
    "no classes": (made(classes="None"), "own.py:f: has no attribute classes; --classes must be a file"),
    "one class": (made(classes="['a']"), "own.py:f, split train: classes: there are 1; must be 2 to 254"),
    "a fingerprint": (made(fingerprint="[1]"), "its fingerprint is a list; must be a text or a number"),
    "chance": ("    return Noisy(split)\n", "example 0: changes between two calls of __getitem__; must be the same"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_sources_that_cannot_be_used_are_refused_in_one_line(own, case):
    body, message = REFUSED[case]
    noisy = "class Noisy(Drawn):\n    def __getitem__(self, i):\n        image = np.random.rand(40, 48, 3)\n"
    noisy += "        return {**super().__getitem__(i), 'image': image}\n"
    pairs = "class Pairs(list):\n    classes = Drawn.classes\n"
    own.write_text(f"{CODE}\n{noisy}\n{pairs}\ndef f(data_dir, split):\n{body}")
    for cache in ("memory", "none") if "later" in case else ("memory",):
        with pytest.raises(PetsegError) as error:
            loading.load(config(own, "f", cache=cache), "train", for_training=True).read(range(12))
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_truth_values_are_classes_and_weights_and_classes_may_be_a_tuple(own):
    own.write_text(f"""{CODE}
def truths(data_dir, split):
    mask = np.arange(64 * 64).reshape(64, 64) % 3 == 0
    source = Drawn(split, wrong={{i: {{"image": mask, "mask": mask, "weights": mask}} for i in range(12)}})
    source.classes = ("no", "yes")
    return source
""")
    examples = loading.load(config(own, "truths", image_size="64"), "train")
    image, mask, _, weight = (each if each is None else each.numpy()[0] for each in examples.fetch(tf.constant([0])))
    assert examples.classes.names == ("no", "yes")
    np.testing.assert_array_equal(mask, weight)
    np.testing.assert_array_equal(mask * 255, image[..., :1])
    assert (weight.dtype, mask.mean()) == ("float32", pytest.approx(1 / 3, abs=0.01))
    without = weights_to_score(config(own, "truths", image_size="64"), "none")
    assert (
        loading.load(config(own, "truths", image_size="64", **without), "train").fetch(tf.constant([0])).weight is None
    )


def test_classes_that_give_values_other_meanings_than_a_run_are_refused(own):
    data = catalog.open_data(config(own), Classes.from_dict(["object", "background"]))
    with pytest.raises(ConfigError, match=r"^own\.py:source, split train: value 0 in masks is background, but"):
        data.source("train")
    inferred = catalog.open_data(config(own), Classes.from_dict(["class_0", "class_1"]))
    assert len(inferred.source("train")) == 12


def test_flags_and_splits_that_do_not_exist_are_refused(own):
    for split, message in (("tset", "failed: KeyError: 'tset'"), ("all", "no split all; must name splits"),
                           ("train[:x%]", "no split train[:x%]; it must be one of")):  # fmt: skip
        with pytest.raises(DataError, match=r"own\.py:source") as error:
            loading.load(config(own), split)
        assert message in str(error.value)
    with pytest.raises(ConfigError, match=r"there is no function other in"):
        loading.load(config(own, "other"), "train")
    with pytest.raises(
        ConfigError, match=r"--dataset=own\.py: must be the name of a TFDS data set, .*, or FILE\.py:func"
    ):
        DataConfig(dataset="own.py")
