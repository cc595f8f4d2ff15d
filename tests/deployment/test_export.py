"""Exports, read by the runtimes that people will read them with."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, load_examples
from PIL import Image

from petseg.config.eval_config import EXPORT_FORMATS
from petseg.deployment import export
from petseg.errors import ConfigError, PetsegError, WorkDirectoryError
from petseg.models import encoders, inference, mixed_precision, unet
from petseg.models.batch_norm_calibration import calibrate_batch_norm

SIZE, CLASSES = 64, 3
pytestmark = pytest.mark.slow
MODULES = {
    "tflite": ("ai_edge_litert",),
    "tflite_int8": ("ai_edge_litert",),
    "onnx": ("tf2onnx", "onnxruntime"),
    "onnx_half": ("tf2onnx",),
}


def installed(name):
    return all(importlib.util.find_spec(module) for module in MODULES.get(name, ()))


def pictures(count, size=SIZE, seed=0):
    """Smooth blots of colour, uint8 [N, S, S, 3]."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 3, 3, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(s).resize((size, size), Image.Resampling.BICUBIC)) for s in small])


def small_model(size=SIZE, **options):
    keras.utils.set_random_seed(2)  # of which int8 masks agree on 98% of the pixels
    encoder = encoders.build_encoder("tiny", image_size=(size, size))
    model = unet.build_unet(
        image_size=(size, size),
        num_classes=CLASSES,
        encoder=encoder,
        train_encoder=False,
        input_scaling="unit",
        **options,
    )
    calibrate_batch_norm(encoder, tf.random.stateless_uniform([16, size, size, 3], seed=[0, 0]))
    return model


@pytest.fixture(scope="module")
def model():
    """A model that is as sure of its classes as a trained one."""
    model = small_model()
    kernel = model.get_layer("logits").kernel
    kernel.assign(20 * kernel)
    return model


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """A folder with the model in all formats whose packages are installed, and what `export` returned."""
    folder = tmp_path_factory.mktemp("exports") / "new" / "folder"
    formats = [name for name in EXPORT_FORMATS if name != "weights" and installed(name)]
    card = {"classes": ["pet", "background", "border"], "metrics": {"mean_iou": 0.5, "loss": float("nan")}}
    examples, calibration = pictures(20, seed=2), pictures(24, seed=3)
    return folder, export.export(model, formats, str(folder), examples, calibration=calibration, card=card)


def assert_says_what_the_model_says(outputs, model, images, *, atol=1e-4, equal=0.999):
    logits = model(images.astype(np.float32), training=False).numpy()
    probabilities, mask = np.asarray(outputs["probabilities"]), np.asarray(outputs["mask"])
    assert (probabilities.dtype, probabilities.shape) == (np.float32, logits.shape)
    assert (mask.dtype, mask.shape) == (np.uint8, logits.shape[:-1])
    np.testing.assert_allclose(probabilities, tf.nn.softmax(logits), atol=atol)
    assert (mask == logits.argmax(-1)).mean() >= equal


def test_the_model_of_these_tests_finds_every_class(model):
    mask = inference.logits(model, pictures(20, seed=2)).numpy().argmax(-1)
    assert (np.bincount(mask.ravel(), minlength=CLASSES) > mask.size / 10).all()


@pytest.mark.parametrize("count", [1, 7])
def test_saved_model(model, exported, count):
    served = tf.saved_model.load(str(exported[0] / "saved_model")).signatures["serving_default"]
    _, inputs = served.structured_input_signature
    assert {name: (spec.dtype, spec.shape.as_list()) for name, spec in inputs.items()} == {
        "image": (tf.uint8, [None, None, None, 3])
    }
    assert set(served.structured_outputs) == {"probabilities", "mask"}
    images = pictures(count, seed=4)
    assert_says_what_the_model_says(served(image=tf.constant(images)), model, images)


def test_keras_files_load_in_a_fresh_process_that_has_no_other_runtime(model, exported, tmp_path):
    images = pictures(7, seed=4)
    np.save(tmp_path / "images.npy", images)
    script = f"""
import sys, keras, numpy as np, petseg.export
assert not {{"tf2onnx", "onnx", "onnxruntime", "ai_edge_litert"}} & set(sys.modules)
images = np.load("{tmp_path}/images.npy")
for kind in ("keras", "h5"):
    model = keras.models.load_model(f"{exported[0]}/model.{{kind}}", safe_mode=True)
    assert (model.input.name, model.input.dtype, model.input.shape) == ("image", "uint8", (None, {SIZE}, {SIZE}, 3))
    training = {{key: np.asarray(value) for key, value in model(images[:2], training=True).items()}}
    np.savez(f"{tmp_path}/{{kind}}.npz", **{{key: np.asarray(value) for key, value in model(images).items()}})
    np.savez(f"{tmp_path}/{{kind}}.training.npz", **training)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for kind in ("keras", "h5"):
        assert_says_what_the_model_says(np.load(tmp_path / f"{kind}.npz"), model, images)
        assert_says_what_the_model_says(np.load(tmp_path / f"{kind}.training.npz"), model, images[:2])


@pytest.mark.parametrize(("file", "atol", "equal"), [("model.tflite", 1e-4, 0.999), ("model_int8.tflite", 1, 0.97)])
def test_tflite(model, exported, file, atol, equal):
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="takes ai-edge-litert")
    interpreter = litert.Interpreter(str(exported[0] / file))
    served = interpreter.get_signature_runner("serving_default")
    inputs, outputs = served.get_input_details(), served.get_output_details()
    assert {name: (d["dtype"], d["shape"].tolist()) for name, d in inputs.items()} == {
        "image": (np.uint8, [1, SIZE, SIZE, 3])
    }
    assert {name: (d["dtype"], d["shape"].tolist()) for name, d in outputs.items()} == {
        "probabilities": (np.float32, [1, SIZE, SIZE, CLASSES]),
        "mask": (np.uint8, [1, SIZE, SIZE]),
    }
    images = pictures(12, seed=4)
    found = [served(image=image[None]) for image in images]
    found = {name: np.concatenate([each[name] for each in found]) for name in outputs}
    assert_says_what_the_model_says(found, model, images, atol=atol, equal=equal)
    np.testing.assert_allclose(found["probabilities"].sum(-1), 1, atol=0.01)


def test_int8_weights_take_a_quarter_of_the_room(exported):
    pytest.importorskip("ai_edge_litert", reason="takes ai-edge-litert")
    sizes = {agreement.format: agreement.size_mib for agreement in exported[1]}
    assert sizes["tflite_int8"] < 0.3 * sizes["tflite"]


@pytest.mark.parametrize("count", [1, 7])
def test_onnx(model, exported, count):
    pytest.importorskip("tf2onnx", reason="takes tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="takes onnxruntime")
    session = onnxruntime.InferenceSession(str(exported[0] / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["batch", "height", "width", 3])
    ]
    assert {o.name: (o.type, o.shape) for o in session.get_outputs()} == {
        "probabilities": ("tensor(float)", ["batch", "height", "width", CLASSES]),
        "mask": ("tensor(uint8)", ["batch", "height", "width"]),
    }
    images = pictures(count, seed=4)
    names = ["probabilities", "mask"]
    found = dict(zip(names, session.run(names, {"image": images}), strict=True))
    assert_says_what_the_model_says(found, model, images)


def test_agreements_and_card(exported):
    folder, agreements = exported
    card = json.loads((folder / "model_card.json").read_text())
    assert card["classes"] == ["pet", "background", "border"]
    assert card["metrics"] == {"mean_iou": 0.5, "loss": None}
    assert (card["input"]["name"], card["input"]["dtype"]) == ("image", "uint8")
    assert card["input"]["shape"] == ["batch", SIZE, SIZE, 3]
    assert card["input"]["content"] == (
        f"RGB, resized to {SIZE} x {SIZE} (height x width) bilinearly with antialiasing"
    )
    assert [(output["name"], output["dtype"]) for output in card["outputs"]] == [
        ("probabilities", "float32"), ("mask", "uint8")
    ]  # fmt: skip
    assert [agreement.format for agreement in agreements] == list(card["formats"])
    for agreement in agreements:
        entry = card["formats"][agreement.format]
        assert entry["mask_agreement"] == agreement.mask_agreement
        assert entry["batch"] == (1 if "tflite" in agreement.format else "any")
        others = ", or others that differ from it by multiples of 32" if agreement.any_size else ""
        assert entry["image_size"] == f"{SIZE} x {SIZE}{others}"
        assert agreement.any_size == (agreement.format in ("saved_model", "onnx", "onnx_half"))
        assert (folder / entry["path"]).exists()
        assert agreement.size_mib > 1
        assert re.search(rf"(?m)^{agreement.format} .*{re.escape(agreement.path)}$", export.table(agreements))
        if agreement.format not in ("tflite_int8", "onnx_half"):
            assert agreement.largest_difference < 1e-4
    files = {entry["path"] for entry in card["formats"].values()}
    assert {path.name for path in folder.iterdir()} == {*files, "model_card.json"}  # nothing temporary


@pytest.fixture(scope="module")
def tiny():
    return small_model(32)


def test_mixed_precision_and_synchronised_batch_norms_become_plain_float32(tiny, tmp_path):
    with mixed_precision.dtype_policy("mixed_bfloat16"):
        mixed = small_model(32, sync_batch_norm=True)
    mixed.set_weights(tiny.get_weights())
    before = [layer.trainable for layer in mixed._flatten_layers()]
    images = pictures(5, 32)
    (found,) = export.export(mixed, ["keras"], str(tmp_path), images, calibration=images, card={})
    assert found.largest_difference < 1e-5
    assert [layer.trainable for layer in mixed._flatten_layers()] == before
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_says_what_the_model_says(loaded(images), tiny, images, atol=1e-5)


def test_an_export_that_disagrees_is_named_after_all_are_made(tiny, tmp_path, monkeypatch, caplog):
    load = keras.models.load_model

    def load_something_else(path, **options):
        loaded = load(path, **options)
        for variable in loaded.variables:
            if path.suffix == ".keras" and "logits" in variable.path:
                variable.assign(-variable)
        return loaded

    monkeypatch.setattr(keras.models, "load_model", load_something_else)
    images = pictures(5, 32)
    with pytest.raises(
        PetsegError, match=rf"--export=keras: {tmp_path}/model\.keras agrees .* must on 99.9%"
    ) as caught:
        export.export(tiny, ["keras", "h5"], str(tmp_path), images, calibration=images, card={})
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert "model.h5" not in str(caught.value)
    assert f"{tmp_path}/model.h5" in caplog.text  # the table
    assert (tmp_path / "model.keras").exists()
    assert set(json.loads((tmp_path / "model_card.json").read_text())["failures"]) == {"keras"}
    monkeypatch.undo()
    assert_says_what_the_model_says(keras.models.load_model(tmp_path / "model.h5")(images), tiny, images)


def test_a_conversion_that_fails_leaves_what_was_there_and_the_next_replaces_it(tiny, tmp_path, monkeypatch):
    images = pictures(5, 32)
    export.export(tiny, ["saved_model"], str(tmp_path), images, calibration=images, card={})
    before = (tmp_path / "saved_model" / "saved_model.pb").read_bytes()

    def save_half(module, path, **options):
        Path(path).mkdir()
        Path(path, "saved_model.pb").write_bytes(b"half")
        raise RuntimeError("no space\nleft")

    with monkeypatch.context() as patched:
        patched.setattr(tf.saved_model, "save", save_half)
        with pytest.raises(PetsegError, match=r"--export=saved_model: .*/saved_model: RuntimeError: no space left$"):
            export.export(tiny, ["saved_model"], str(tmp_path), images, calibration=images, card={})
    assert {path.name for path in tmp_path.iterdir()} == {"saved_model", "model_card.json"}
    assert (tmp_path / "saved_model" / "saved_model.pb").read_bytes() == before
    export.export(tiny, ["saved_model"], str(tmp_path), images, calibration=images, card={})
    assert {path.name for path in tmp_path.iterdir()} == {"saved_model", "model_card.json"}


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("onnx", "onnxruntime", "needs the packages tf2onnx and onnxruntime: pip install 'petseg[export]'"),
        ("tflite_int8", "ai_edge_litert", "needs the package ai-edge-litert: pip install 'petseg[export]'"),
    ],
)
def test_a_missing_package_is_reported_before_anything_is_written(tiny, tmp_path, monkeypatch, name, module, message):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == module else find(wanted))
    images = pictures(1, 32)
    with pytest.raises(ConfigError) as caught:
        export.export(tiny, ["keras", name], str(tmp_path / "out"), images, calibration=images, card={})
    assert str(caught.value) == f"--export={name}: {message}"
    assert not (tmp_path / "out").exists()


def test_unknown_formats_and_folders_that_cannot_be_written(tiny, tmp_path):
    images = pictures(1, 32)
    with pytest.raises(
        ConfigError, match="--export=caffe: no such format; must be some of saved_model, keras, h5, tflite"
    ):
        export.export(tiny, ["keras", "caffe"], str(tmp_path), images, calibration=images, card={})
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkDirectoryError, match=r"--output_dir=.*/file/out: .* cannot be written"):
        export.export(tiny, ["keras"], str(tmp_path / "file" / "out"), images, calibration=images, card={})


@pytest.mark.parametrize(("decoder", "formats"), [("pix2pix", ["tflite_int8", "onnx"]), ("light", ["tflite_int8"])])
def test_real_photographs_and_weights(fit_without_xla, real_data_dir, real_weights, tmp_path, decoder, formats):
    formats = [name for name in formats if installed(name)]
    train = load_examples("oxford_iiit_pet", "train[:64]", SIZE, real_data_dir)
    test = load_examples("oxford_iiit_pet", "test[:32]", SIZE, real_data_dir)
    encoder = encoders.build_encoder("mobilenet_v2", image_size=(SIZE, SIZE), alpha=1.0, weights=real_weights)
    model = unet.build_unet(
        image_size=(SIZE, SIZE),
        num_classes=CLASSES,
        encoder=encoder,
        train_encoder=False,
        input_scaling="symmetric",
        decoder=decoder,
        batch_norm_momentum=0.5,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(train.images.astype(np.float32), train.masks, batch_size=8, epochs=6, verbose=0)
    agreements = export.export(model, formats, str(tmp_path), test.images, calibration=train.images, card={})
    print(export.table(agreements))
    assert [agreement.format for agreement in agreements] == formats
    assert all(a.mask_agreement > (0.97 if a.format == "tflite_int8" else 0.9999) for a in agreements)
