"""`eval.py --export` from a work directory to files."""

import json
import re
import shutil

import numpy as np
import programs_in_forks
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import NUM_TEST, NUM_TRAIN, load_examples, own_lines

from petseg.classes import PETS
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.data import example_decoding
from petseg.deployment import export_command
from petseg.errors import DataError
from petseg.models import inference
from petseg.runs import building, checkpoints
from petseg.runs.work_directory import WorkDirectory


@pytest.fixture(scope="module")
def workdir(finished_run, tmp_path_factory):
    """The work directory of a finished run."""
    return WorkDirectory(shutil.copytree(finished_run, tmp_path_factory.mktemp("finished") / "run"))


@pytest.mark.slow
def test_the_model_is_exported_with_a_card(workdir, data_dir, tmp_path):
    flags = [f"--workdir={workdir.path}", f"--output_dir={tmp_path / 'out'}"]
    result = programs_in_forks.run("eval.py", *flags, "--export=saved_model,keras")
    assert result.returncode == 0, result.stderr
    assert re.search(r"^saved_model +100\.00000% ", result.stdout, re.MULTILINE), result.stdout
    card = json.loads((tmp_path / "out" / "model_card.json").read_text())
    assert [each["name"] for each in card["classes"]] == list(PETS.names)
    assert card["checkpoint"].endswith("ckpt-4")
    assert card["scores"]["examples"] == NUM_TEST
    assert card["run"]["config"]["data"]["image_size"] == "32"
    assert card["run"]["versions"]["keras"]
    assert set(card["formats"]) == {"saved_model", "keras"}
    loaded = tf.saved_model.load(str(tmp_path / "out" / "saved_model")).signatures["serving_default"]
    model = building.build_model(workdir.load_config(), PETS)
    checkpoints.restore_model(card["checkpoint"], model=model)
    images = load_examples("synthetic_pets", "test", 32, str(data_dir)).images
    outputs = loaded(image=tf.constant(images))
    np.testing.assert_allclose(outputs["probabilities"], tf.nn.softmax(inference.logits(model, images)), atol=1e-5)
    refused = programs_in_forks.run("eval.py", *flags, "--export=caffe")
    assert own_lines(refused.stderr) == [
        "eval.py: error: --export=caffe: no such format; "
        "must be some of saved_model, keras, h5, tflite, tflite_int8, onnx, onnx_half, weights"
    ]


@pytest.mark.parametrize(
    ("formats", "compared", "calibration"),
    [("saved_model", 4, None), ("keras,h5", 100, None), ("keras,tflite_int8", 4, 8)],
)
def test_an_export_decodes_the_images_that_it_needs_and_no_others(
    workdir, data_dir, tmp_path, monkeypatch, formats, compared, calibration
):
    given, decoded = {}, []
    genuine = example_decoding.check_example

    def export(model, formats, output_dir, examples, **options):
        given.update(options, examples=examples)
        return []

    monkeypatch.setattr(export_command.export_lib, "check_formats", lambda formats: None)
    monkeypatch.setattr(export_command.export_lib, "export", export)
    monkeypatch.setattr(example_decoding, "check_example", lambda *args: (decoded.append(args), genuine(*args)))
    monkeypatch.setattr(export_command, "COMPARED_IMAGES", compared)
    monkeypatch.setattr(export_command, "CALIBRATION_IMAGES", 10)
    score = ScoreConfig(workdir=str(workdir.path), export=formats, output_dir=str(tmp_path / "out"))
    export_command.export(EvalConfig(score))
    assert len(decoded) == min(compared, NUM_TEST) + (calibration or 0)
    images = {split: load_examples("synthetic_pets", split, 32, str(data_dir)).images for split in ("test", "train")}
    np.testing.assert_array_equal(given["examples"], images["test"][:compared])
    if calibration is None:
        assert given["calibration"] is None
    else:
        np.testing.assert_array_equal(given["calibration"], images["train"][:: NUM_TRAIN // calibration])


@pytest.mark.parametrize("data", ["nowhere", "empty", "unprepared", "folder that is gone", "folder without pictures"])
def test_without_the_data_set_an_export_is_compared_on_drawings_and_nothing_is_fetched(
    workdir, tmp_path, monkeypatch, caplog, data
):
    def refuse(*arguments, **options):
        raise AssertionError("the data set is prepared")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    monkeypatch.setattr(export_command, "COMPARED_IMAGES", 8)
    (tmp_path / "here").mkdir()
    values = {
        "nowhere": {"dataset": "oxford_iiit_pet", "data_dir": str(tmp_path / "nowhere")},
        "empty": {"dataset": "oxford_iiit_pet", "data_dir": str(tmp_path / "here")},
        "unprepared": {"dataset": "synthetic_pets", "data_dir": str(tmp_path / "here")},
        "folder that is gone": {"dataset": "folder", "data_dir": str(tmp_path / "nowhere")},
        "folder without pictures": {"dataset": "folder", "data_dir": str(tmp_path / "here")},
    }
    theirs = tmp_path / "theirs"
    shutil.copytree(workdir.path, theirs)
    record = json.loads((theirs / "config.json").read_text())
    record["config"]["data"] |= values[data]
    (theirs / "config.json").write_text(json.dumps(record))
    score = ScoreConfig(workdir=str(theirs), export="keras", output_dir=str(tmp_path / "out"))
    with caplog.at_level("WARNING", logger="petseg"):
        (agreement,) = export_command.export(EvalConfig(score))
    assert agreement.mask_agreement >= 0.999
    assert "exports are compared on drawings" in caplog.text
    assert json.loads((tmp_path / "out" / "model_card.json").read_text())["compared_on"] == "8 drawings"
    assert not (tmp_path / "nowhere").exists()
    assert not list((tmp_path / "here").iterdir())


def test_an_unknown_split_of_an_available_data_set_is_refused(workdir, tmp_path):
    score = ScoreConfig(workdir=str(workdir.path), export="keras", output_dir=str(tmp_path / "out"), split="tets")
    with pytest.raises(DataError, match="no split tets"):
        export_command.export(EvalConfig(score))
    assert not (tmp_path / "out").exists()
