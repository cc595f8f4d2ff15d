"""Prediction with ONNX Runtime and NumPy agrees with TensorFlow and does not load it."""

import itertools
import subprocess
import sys

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from conftest import ROOT, changed
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from petseg.classes import PETS
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.deployment import export, onnx_cache, onnx_runner, prediction_command
from petseg.deployment.onnx_half import half_precision
from petseg.deployment.onnx_runner import OnnxRunner
from petseg.deployment.predictor import Predictor
from petseg.errors import ExportError
from petseg.models import encoders, unet
from petseg.models.batch_norm_calibration import calibrate_batch_norm
from petseg.runs import building, open_trained_run, packed_run
from petseg.runs.checkpoints import Checkpoints
from petseg.runs.trained_run import TrainedRun
from petseg.runs.work_directory import WorkDirectory


def photograph(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network for 32 x 64 pixels, and its ONNX file."""
    encoder = encoders.build_encoder("tiny", image_size=(32, 64))
    model = unet.build_unet(
        image_size=(32, 64), num_classes=3, encoder=encoder, train_encoder=False, input_scaling="unit"
    )
    calibrate_batch_norm(encoder, tf.random.stateless_uniform([16, 32, 64, 3], seed=[0, 0]))
    file = tmp_path_factory.mktemp("exported") / "model.onnx"
    export.write_onnx(model, file)
    return model, file


def same(found, expected):
    return (found.mask == expected.mask).mean()


def test_masks_and_foreground_are_those_of_tensorflow(exported):
    model, file = exported
    pictures = [photograph(*size, seed) for seed, size in enumerate([(90, 120), (40, 200), (300, 31), (32, 64)])]
    for resize, tile, flip_tta in (
        ("stretch", None, False), ("stretch", (48, 64), True), ("letterbox", None, True), ("crop", (32, 64), False)
    ):  # fmt: skip
        options = {"resize": resize, "tile": tile, "flip_tta": flip_tta}
        by_tensorflow, by_onnx = (Predictor(each, PETS, **options) for each in (model, file))
        for found, picture in zip(by_onnx.predict(pictures), pictures, strict=True):
            expected = by_tensorflow(picture)
            assert same(found, expected) >= 0.999, options
            assert np.abs(found.foreground.astype(int) - expected.foreground).max() <= 3
        np.testing.assert_allclose(
            by_onnx(pictures[0]).probabilities, by_tensorflow(pictures[0]).probabilities, atol=0.02
        )


def test_in_half_precision_the_file_is_half_as_large_and_the_arithmetic_is_not(exported, tmp_path):
    _, file = exported
    half_precision(file, tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 0.6 * file.stat().st_size
    whole, half = (Predictor(each, PETS) for each in (file, tmp_path / "half.onnx"))
    agreement = [same(half(photograph(90, 120, seed)), whole(photograph(90, 120, seed))) for seed in range(4)]
    assert np.mean(agreement) > 0.99
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "half.onnx"))
    onnx.checker.check_model(model)
    types = {each.type.tensor_type.elem_type for each in itertools.chain(model.graph.value_info, model.graph.output)}
    assert TensorProto.FLOAT16 not in types


def test_weights_out_of_the_range_of_float16_are_refused(tmp_path):
    values = np.full(1000, 1e5, np.float32)
    image, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1000]) for name in ("image", "result"))
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "kernel"], ["result"])], "large", [image], [result],
        [numpy_helper.from_array(values, "kernel")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "large.onnx")
    with pytest.raises(ExportError, match=r"large\.onnx: kernel holds weights out of the range of float16"):
        half_precision(tmp_path / "large.onnx", tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()
    with pytest.raises(ExportError, match=r"large\.onnx: is not an ONNX file that petseg exported"):
        OnnxRunner(tmp_path / "large.onnx")


def test_files_that_are_not_onnx_are_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("this is a text")
    with pytest.raises(ExportError, match=r"text\.onnx: is not an ONNX file that petseg exported"):
        OnnxRunner(tmp_path / "text.onnx")
    with pytest.raises(ExportError, match="there is no such file; must be an ONNX file"):
        OnnxRunner(tmp_path)


PROGRAM = """
import runpy, sys
sys.argv = ["eval.py", *sys.argv[1:]]
runpy.run_path("eval.py", run_name="__main__")
print(sorted({"tensorflow", "keras", "tensorboard", "onnx"} & sys.modules.keys()))
"""


def test_a_checkpoint_is_exported_once_and_then_tensorflow_is_not_needed(tiny_config, tmp_path):
    workdir = WorkDirectory(tiny_config.runtime.workdir)
    config = changed(tiny_config, "data", resize="letterbox")
    workdir.save_config(config, classes=PETS, class_weights=None, devices=[])
    keras.utils.set_random_seed(0)
    model = building.build_model(config, PETS)
    # Uncalibrated it would be sure of nothing, and rounding would decide.
    pictures = tf.random.stateless_uniform([16, *config.data.size, 3], seed=[0, 0])
    calibrate_batch_norm(model.get_layer("encoder").model, pictures)
    checkpoints = Checkpoints(workdir.checkpoints, keep=2, model=model, step=tf.Variable(3, dtype=tf.int64))
    checkpoints.save(3)
    Image.fromarray(photograph(50, 70)).save(tmp_path / "cat.png")
    flags = {"workdir": str(workdir.path), "predict": str(tmp_path / "cat.png"), "runtime": "onnx"}
    (mask,) = prediction_command.predict(EvalConfig(ScoreConfig(**flags, output_dir=str(tmp_path / "first"))))
    (file,) = (workdir.path / "onnx").iterdir()
    assert file.name.startswith("ckpt-3.trained.")
    expected = Predictor(model, PETS, resize="letterbox")(photograph(50, 70)).mask
    assert (np.asarray(Image.open(mask)) == expected).mean() >= 0.999

    made = file.stat().st_mtime_ns
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, f"--output_dir={tmp_path / 'second'}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"
    assert (tmp_path / "second" / "cat.mask.png").read_bytes() == mask.read_bytes()
    assert file.stat().st_mtime_ns == made

    # Other weights at the same step, as of a restarted run, have a file of another name.
    model.weights[0].assign_add(tf.ones_like(model.weights[0]))
    checkpoints.save(3)
    run = TrainedRun.open(workdir, ScoreConfig(**flags))
    assert onnx_cache.onnx_file(run, run.checkpoint("latest", intact=False)) != file


def test_a_packaged_model_uses_onnx_runtime_by_default(monkeypatch, tiny_config, tmp_path):
    def runtime(**flags):
        score = ScoreConfig(**{"pretrained": True, "predict": "cat.jpg", **flags})
        return prediction_command.choose_runtime(open_trained_run.open_run(score), score)

    assert runtime() == "onnx"
    assert runtime(runtime="tensorflow") == "tensorflow"
    assert runtime(precision="mixed_float16") == "tensorflow"
    file = packed_run.pack(
        tmp_path / "mine.safetensors",
        building.build_model(tiny_config, PETS),
        tiny_config,
        PETS,
        {"step": 1, "weights": "trained"},
    ).path
    assert runtime(pretrained=False, workdir=str(file)) == "tensorflow"
    monkeypatch.setattr(onnx_runner, "is_installed", lambda: False)
    assert runtime() == "tensorflow"
