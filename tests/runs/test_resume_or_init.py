import keras
import pytest
import tensorflow as tf
from conftest import changed, random_examples

from petseg.classes import PETS
from petseg.errors import ConfigError
from petseg.runs import resume_or_init
from petseg.runs.checkpoints import Checkpoints
from petseg.runs.resume_or_init import StartingPoint
from petseg.runs.work_directory import WorkDirectory


def save_checkpoint(workdir, step):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(3)])
    Checkpoints(workdir.checkpoints, keep=1, model=model).save(step)


def test_initial_weights_come_from_the_first_existing_source(tiny_config, tmp_path):
    workdir, other = WorkDirectory(tmp_path / "run"), WorkDirectory(tmp_path / "other")
    assert resume_or_init.find_starting_point(tiny_config, workdir) == StartingPoint()
    weights = tmp_path / "weights.h5"
    weights.write_text("")
    config = changed(tiny_config, "model", encoder_weights=str(weights))
    assert resume_or_init.find_starting_point(config, workdir) == StartingPoint(encoder_weights=str(weights))
    other.save_config(tiny_config, classes=PETS, class_weights=None, devices=[])
    config = changed(config, "model", init_from=str(other.path))
    assert resume_or_init.find_starting_point(config, workdir) == StartingPoint(init_from=str(other.path))
    save_checkpoint(other, 3)
    config = changed(config, "model", init_from=str(other.checkpoints / "ckpt-3.index"))
    assert resume_or_init.find_starting_point(config, workdir) == StartingPoint(init_from=config.model.init_from)
    save_checkpoint(workdir, 5)
    config = changed(config, "model", init_from="gone since", encoder_weights="gone since")
    assert resume_or_init.find_starting_point(config, workdir) == StartingPoint(
        checkpoint=str(workdir.checkpoints / "ckpt-5")
    )


@pytest.mark.parametrize("name", ["init_from", "encoder_weights"])
def test_missing_initial_weights_are_refused_before_a_model_is_built(tiny_config, tmp_path, name):
    config = changed(tiny_config, "model", **{name: str(tmp_path / "gone")})
    with pytest.raises(ConfigError, match=f"--{name}={tmp_path}/gone: "):
        resume_or_init.find_starting_point(config, WorkDirectory(tmp_path / "run"))


@pytest.mark.parametrize(("start", "images"), [(StartingPoint(), 5), (StartingPoint(checkpoint="ckpt-5"), 0)])
def test_calibration_images_are_limited_by_memory(tiny_config, monkeypatch, start, images):
    seen = []
    monkeypatch.setattr(resume_or_init, "calibrate_batch_norm", lambda encoder, images: seen.append(images.shape))
    monkeypatch.setattr(resume_or_init, "CALIBRATION_PIXELS", 5 * 32**2 + 1)
    resume_or_init.build_initial_model(start, tiny_config, random_examples(8))
    assert seen == ([tf.TensorShape([images, 32, 32, 3])] if images else [])


def test_memory_for_calibration_does_not_grow_with_the_side_of_the_images():
    assert resume_or_init.CALIBRATION_PIXELS // 128**2 == resume_or_init.CALIBRATION_IMAGES
    assert resume_or_init.CALIBRATION_PIXELS // 512**2 == 4
