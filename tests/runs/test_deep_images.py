"""Whole runs on images of four channels, and of 12 bits in files of 16: an object that only these show is found."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image
from short_trainings import SMALL_NETWORK, assert_equal, built_once, of_the_model, steps_only, variables

import petseg
from petseg.classes import PETS
from petseg.config import Config
from petseg.deployment import export
from petseg.runs import building, train

pytestmark = pytest.mark.slow
SIZE = 64


def near_infrared(mask, rng):
    """RGB noise, and a fourth channel in which alone the object is brighter."""
    colors = rng.integers(60, 190, (*mask.shape, 3))
    near = 80 + 100 * mask + rng.integers(-15, 15, mask.shape)
    return ".png", encoded(np.dstack([colors, near]).astype(np.uint8))


def twelve_bits(mask, rng):
    """An object of 60 of 4095 levels, one step of 8 bits after a division by 257 at most."""
    pixels = (1000 + 60 * mask + rng.normal(0, 8, mask.shape)).astype(np.uint16)
    pixels[0, 0] = 4095
    data = io.BytesIO()
    tifffile.imwrite(data, pixels)
    return ".tif", data.getvalue()


def encoded(array):
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


def write(root, make):
    for split, count in (("train", 32), ("test", 8)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng([i, count])
            mask = np.zeros((SIZE, SIZE), np.int64)
            top, left = rng.integers(4, SIZE - 28, 2)
            mask[top : top + 24, left : left + 24] = 1
            suffix, data = make(mask, rng)
            (root / "images" / split / f"{i:02}{suffix}").write_bytes(data)
            (root / "masks" / split / f"{i:02}.png").write_bytes(encoded(mask.astype(np.uint8)))
    (root / "classes.json").write_text('["background", "object"]')
    return root


@pytest.mark.parametrize(
    ("make", "channels", "dtype"), [(near_infrared, 4, "uint8"), (twelve_bits, 0, "uint16")], ids=["near-ir", "12-bit"]
)
def test_an_object_that_eight_bit_rgb_does_not_show_is_found(make, channels, dtype, tmp_path):
    root = write(tmp_path / "folder", make)
    config = Config.of(
        dataset="folder", data_dir=str(root), cache_dir=str(tmp_path / "cache"), workdir=str(tmp_path / "run"),
        image_size=SIZE, batch_size=8, encoder="tiny", encoder_weights="none", train_encoder=True, epochs=30,
        learning_rate=3e-3, channels=channels, eval_every=120, checkpoint_every=120,
    )  # fmt: skip
    run = petseg.train(config)
    assert run.scores["iou"]["object"] > 0.9
    kept = json.loads((run.workdir / "config.json").read_text())["config"]["data"]
    assert (kept["channels"], kept["image_dtype"]) == (channels or 3, dtype)
    segmenter, matrix = petseg.load(run.workdir), np.zeros((2, 2), np.int64)
    for file in sorted((root / "images" / "test").iterdir()):
        mask = np.asarray(Image.open(root / "masks" / "test" / f"{file.stem}.png"))
        np.add.at(matrix, (mask, segmenter(file).mask), 1)
    np.testing.assert_array_equal(matrix, segmenter.evaluate("test")["confusion_matrix"])


def test_runs_on_deep_images_do_not_depend_on_caches_restarts_or_replicas(tmp_path):
    root, network = write(tmp_path / "folder", twelve_bits), SMALL_NETWORK.network

    def config(name, steps=4, **flags):
        defaults = {"strategy": "one_device", "resize": "crop", "augment": "standard", "network": network}
        return Config.of(
            dataset="folder", data_dir=str(root), cache_dir=str(tmp_path / "cache"), workdir=str(tmp_path / name),
            image_size=32, batch_size=8, train_steps=steps, optimizer="sgd",
            learning_rate=0.1, deterministic=True, eval_every=4, checkpoint_every=2, **{**defaults, **flags},
        )  # fmt: skip

    def weights(name, steps=4, **flags):
        train.train(config(name, steps, **flags))
        return variables(f"{tmp_path}/{name}/checkpoints/ckpt-{steps}")

    with built_once(tmp_path / "built"):
        expected = weights("memory")
        weights("disk", steps=2, cache="disk")
        same = {"disk, resumed": weights("disk", cache="disk"), "none": weights("none", cache="none")}
    for found in same.values():
        assert_equal(found, expected)
    on_four = of_the_model(steps_only(config("four", strategy="mirrored", virtual_devices=4)))
    for key, value in of_the_model(expected).items():
        np.testing.assert_allclose(on_four[key], value, atol=1e-6)


def test_exports_of_deep_images_take_the_numbers_of_the_files(tmp_path):
    flags = {"channels": 5, "image_dtype": "uint16", "intensity_range": "9,4000"}
    config = Config.of(image_size=32, encoder="tiny", encoder_weights="none", **flags)
    model, spec = building.build_model(config, PETS), config.data.image_spec
    images = np.random.default_rng(0).integers(0, 4096, (4, 32, 32, 5), np.uint16)
    formats = ("saved_model", "keras", "tflite", "onnx")
    export.export(model, formats, str(tmp_path), images, calibration=None, card={}, image_spec=spec)
    served = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    logits = model(np.clip((images - np.float32(9)) * (255 / 3991), 0, 255), training=False)
    found = served(image=tf.constant(images))["probabilities"]
    np.testing.assert_allclose(found, tf.nn.softmax(logits), atol=1e-4)
    entry = json.loads((tmp_path / "model_card.json").read_text())["input"]
    assert (entry["dtype"], entry["shape"], entry["range"]) == ("uint16", ["batch", 32, 32, 5], [9, 4000])
