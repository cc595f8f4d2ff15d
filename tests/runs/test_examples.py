"""The example files: each keeps the promises of the loop, and computes what its paper says."""

import dataclasses
import importlib.util
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, changed
from PIL import Image
from short_trainings import SMALL_NETWORK, assert_equal, built_once, of_the_model, steps_only, variables

import petseg
from petseg.classes import PETS
from petseg.data import catalog
from petseg.data.drawings import drawn_folders
from petseg.data.drawings.drawn_folders import WriteConfig
from petseg.errors import ConfigError, WorkDirectoryError
from petseg.runs import packed_run, train

CODE_FLAGS = ("loss", "augment", "step", "dataset", "decoder")
EXAMPLES = {
    "mean_teacher": {
        "extension": {"step": "MeanTeacher"},
        "optimizer": {"ema_decay": 0.5, "optimizer": "sgd", "learning_rate": 0.1},
    },
    "distillation": {"extension": {"step": "Distillation"}},
    "lovasz_softmax": {"loss": {"loss": "loss"}},
    "hard_pixels": {"loss": {"loss": "loss"}},
    "cutmix": {"augmentation": {"augment": "augment"}},
    "sharpness_aware": {"extension": {"step": "SharpnessAware"}},
    "muon": {"optimizer": {"optimizer": "muon", "learning_rate": 1e-3}},
    "edge_head": {
        "extension": {"step": "EdgeHead"},
        "model": {"decoder": "decoder"},
        "optimizer": {"optimizer": "sgd", "learning_rate": 0.03},  # at higher ones, rounding grows from step to step
    },
    "annotator_agreement": {"data": {"weight_files": "weights/{split}/{name}.png"}},
    "zip_data": {"data": {"dataset": "source", "cache": "none"}},
}


def module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def with_example(config, name):
    groups = EXAMPLES[name]
    file = ROOT / "examples" / f"{name}.py"
    groups = {"optimizer": {"optimizer": "sgd", "learning_rate": 0.1}} | groups
    return config.changed(
        **{
            group: {
                flag: f"{file}:{value}" if flag in CODE_FLAGS or value == "muon" else value
                for flag, value in flags.items()
            }
            for group, flags in groups.items()
        }
    )


def trained(config, folder):
    config = changed(config, "runtime", workdir=str(folder))
    train.train(config)
    return variables(f"{folder}/checkpoints/ckpt-{config.schedule.train_steps}")


def zipped(config, file):
    """The config with the synthetic pets in a zip file and their classes in another."""
    data_set = catalog.open_data(config.data)
    with zipfile.ZipFile(file, "w") as archive:
        for split in ("train", "test"):
            for i, example in enumerate(data_set.raw_examples(split).as_numpy_iterator()):
                archive.writestr(f"images/{split}/{i:02}.jpg", example["image"])
                archive.writestr(f"masks/{split}/{i:02}.png", example["mask"])
    classes = file.with_suffix(".json")
    classes.write_text(json.dumps(PETS.to_dict()))
    return changed(config, "data", data_dir=str(file), classes=str(classes))


def annotated(config, folder):
    """The config with drawn animals whose masks the example combines from three annotators."""
    drawn_folders.write(WriteConfig(write=str(folder), num_train=8, num_test=4))
    for annotator in ("anna", "berta"):
        shutil.copytree(folder / "masks", folder / "annotators" / annotator)
    shutil.move(folder / "masks", folder / "annotators" / "carla")
    for file in (folder / "annotators" / "carla").rglob("*.png"):
        Image.fromarray(np.roll(np.asarray(Image.open(file)), 5, axis=1)).save(file)
    module("annotator_agreement").main(folder)
    return changed(config, "data", dataset="folder", data_dir=str(folder), cache_dir=str(folder.parent / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_resumes_with_the_same_bits_and_four_replicas_compute_what_one_computes(
    tiny_config, finished_run, tmp_path, monkeypatch, name
):
    monkeypatch.setenv("TEACHER", str(finished_run))  # of distillation
    if name != "edge_head":  # which is a decoder
        tiny_config = tiny_config.changed(model=vars(SMALL_NETWORK))
    if name == "annotator_agreement":
        tiny_config = annotated(tiny_config, tmp_path / "animals")
    if name == "zip_data":
        tiny_config = zipped(tiny_config, tmp_path / "pets.zip")
    config = with_example(tiny_config, name)
    with built_once(tmp_path / "built"):
        undisturbed = trained(config, tmp_path / "undisturbed")
        interrupted = shutil.copytree(tmp_path / "undisturbed", tmp_path / "interrupted")
        for file in (interrupted / "checkpoints").glob("ckpt-4.*"):
            file.unlink()
        resumed = trained(config, interrupted)
    on_four = config.changed(
        distribution={"strategy": "mirrored", "virtual_devices": 4}, runtime={"workdir": str(tmp_path / "on_four")}
    )
    assert_equal(resumed, undisturbed)
    found = of_the_model(steps_only(on_four))
    for key, weights in of_the_model(undisturbed).items():
        np.testing.assert_allclose(found[key], weights, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.slow
def test_a_run_on_a_zip_file_computes_what_its_data_set_does_notices_another_file_and_is_scored(tiny_config, tmp_path):
    config = with_example(zipped(tiny_config, tmp_path / "pets.zip"), "zip_data")
    config = config.changed(optimizer=dataclasses.asdict(tiny_config.optimizer))
    on_disk = config.changed(data={"cache": "disk", "cache_dir": str(tmp_path / "cache")})
    workdir = tmp_path / "run"
    with built_once(tmp_path / "built"):
        built_in = trained(tiny_config, tmp_path / "built_in")
        trained(changed(config, "schedule", train_steps=2), workdir)
        resumed = trained(on_disk, workdir)
    assert_equal(resumed, built_in)
    with pytest.raises(ConfigError, match=r"its dataset is the code .*zip_data\.py:source; --allow_code must be given"):
        petseg.load(workdir)
    network = petseg.load(workdir, allow_code=True)
    assert network.evaluate("test")["examples"] == 10
    packed_run.pack(tmp_path / "x.safetensors", network.model, network.config, PETS, {"step": 4, "weights": "trained"})
    with pytest.raises(ConfigError, match="--dataset=folder: --data_dir must be the folder"):
        petseg.load(tmp_path / "x.safetensors").evaluate("test")
    with zipfile.ZipFile(tmp_path / "pets.zip", "a") as archive:
        archive.writestr("images/train/99.jpg", archive.read("images/train/00.jpg"))
        archive.writestr("masks/train/99.png", archive.read("masks/train/00.png"))
    with pytest.raises(
        WorkDirectoryError, match=r"cannot be resumed with other data: the data set was zip_data\.py:sou"
    ):
        trained(changed(on_disk, "schedule", train_steps=6), workdir)


def test_every_example_is_tested_and_listed():
    files = {path.stem for path in Path(ROOT, "examples").glob("*.py")}
    listed = Path(ROOT, "examples", "README.md").read_text()
    assert files == set(EXAMPLES)
    assert all(f"({name}.py)" in listed for name in files)


def test_the_lovasz_loss_of_certain_predictions_is_one_minus_the_mean_iou_of_the_image():
    labels = np.random.default_rng(0).integers(0, 3, [2, 8, 8])
    predicted = np.random.default_rng(1).integers(0, 3, [2, 8, 8])
    weights = np.ones([2, 8, 8], np.float32)
    weights[:, :2] = 0
    logits = tf.one_hot(predicted, 3) * 100.0
    found = module("lovasz_softmax").loss(tf.constant(labels), logits, tf.constant(weights))
    for i in range(2):
        true, given = labels[i, 2:], predicted[i, 2:]
        ious = [((true == c) & (given == c)).sum() / ((true == c) | (given == c)).sum() for c in range(3)]
        assert float(found[i]) == pytest.approx(1 - np.mean(ious), abs=1e-5)


def test_hard_pixels_are_the_quarter_with_the_highest_loss_without_ignored_ones():
    logits = tf.random.stateless_normal([2, 8, 8, 3], [0, 0])
    labels, weights = tf.zeros([2, 8, 8], tf.int64), np.ones([2, 8, 8], np.float32)
    weights[0] = 0
    total, count = module("hard_pixels").loss(labels, logits, tf.constant(weights))
    losses = np.sort(-tf.nn.log_softmax(logits)[1, ..., 0].numpy().ravel())[-16:]
    assert float(count) == 16
    assert float(total) == pytest.approx(losses.sum(), rel=1e-5)


def test_annotators_agree_on_the_majority_and_pixels_that_none_labels_have_no_weight():
    masks = np.array([[[0, 1, 2, 255, 255]], [[0, 1, 1, 255, 2]], [[0, 2, 0, 255, 255]]], np.uint8)
    mask, agreement = module("annotator_agreement").combined(masks)
    np.testing.assert_array_equal(mask, [[0, 1, 0, 255, 2]])
    np.testing.assert_allclose(agreement * 3, [[3, 2, 1, 0, 1]])


def test_cutmix_moves_a_rectangle_of_image_mask_and_weights_together():
    images = tf.ones([8, 16, 16, 3]) * tf.range(8, dtype=tf.float32)[:, None, None, None]
    masks = tf.cast(images[..., :1], tf.uint8)
    seeds = tf.random.stateless_uniform([8, 2], [0, 1], None, None, tf.int32)
    mixed, mixed_masks, weights = module("cutmix").augment(images, masks, seeds, images[..., 1:2])
    np.testing.assert_array_equal(tf.cast(mixed[..., :1], tf.uint8), mixed_masks)
    np.testing.assert_array_equal(mixed[..., 1:2], weights)
    found = [set(np.unique(each)) for each in mixed_masks.numpy()]
    assert all(values <= {i, i ^ 1} for i, values in enumerate(found))
    assert any(len(values) == 2 for values in found)
