"""Weight maps of folders and TFDS data sets: reading, faults, caches, resizing."""

import numpy as np
import pytest
import tensorflow as tf
from made_folders import config, pairs, save, write
from PIL import Image

from petseg.data import input_pipeline, loading
from petseg.data.examples import BatchPosition
from petseg.data.resizing import Resizing

FILES = "weights/{split}/{name}.png"


def weight(seed=0, dtype=np.uint8, height=12, width=16):
    numbers = np.random.default_rng(seed).integers(0, np.iinfo(np.uint16).max, (height, width), np.uint16)
    return (numbers >> 8).astype(dtype) if dtype == np.uint8 else numbers.astype(dtype)


def npy(array):
    import io

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
@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
def test_maps_reach_a_batch_as_they_are_from_every_cache(tmp_path, end, make, resize):
    root = folder(tmp_path / "data", two(end, make))
    found = {}
    for cache in ("memory", "disk", "none"):
        examples = load(root, cache, weight_files=f"weights/{{split}}/{{name}}.{end}", resize=resize)
        at = BatchPosition(tf.constant(3, tf.int64), tf.range(2, dtype=tf.int64), 2, 0)
        found[cache] = input_pipeline.part_of_batch(examples, at)
    for cache in ("disk", "none"):
        for key in ("image", "mask", "weight", "example_id"):
            np.testing.assert_array_equal(found["memory"][key], found[cache][key])
    batch = found["memory"]
    for i, number in enumerate(batch["example_id"].numpy().tolist()):
        stored = make(number)
        stored = np.load(__import__("io").BytesIO(stored)) if isinstance(stored, bytes) else np.array(stored)
        expected = Resizing((32, 32), resize).weight(tf.constant(stored[..., None])).numpy()
        assert batch["weight"].dtype == stored.dtype
        np.testing.assert_array_equal(batch["weight"][i], expected)
        assert (expected[batch["mask"][i].numpy() == 255] == 0).all()
