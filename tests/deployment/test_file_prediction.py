"""Masks for photographs in files: outputs, batches, memory, and files that cannot be read or written."""

import errno
import functools
import logging
import os
import re
import shutil
import threading
import types

import numpy as np
import programs_in_forks
import pytest
import tensorflow as tf
import tifffile
from conftest import own_lines
from PIL import Image

from petseg.classes import PETS, Classes
from petseg.config.image_spec import ImageSpec
from petseg.data import images
from petseg.deployment import file_prediction
from petseg.deployment.output_files import Outputs
from petseg.deployment.photograph_files import Plan
from petseg.deployment.predictor import Predictor
from petseg.deployment.segmentation import check_foreground
from petseg.errors import ConfigError, UnreadableFilesError, WorkDirectoryError
from petseg.evaluation.keras_runner import KerasRunner
from petseg.models import encoders, unet
from petseg.models.batch_norm_calibration import calibrate_batch_norm


@pytest.fixture(scope="module")
def model():
    encoder = encoders.build_encoder("tiny", image_size=(64, 64))
    model = unet.build_unet(
        image_size=(64, 64), num_classes=3, encoder=encoder, train_encoder=False, input_scaling="unit"
    )
    calibrate_batch_norm(encoder, tf.random.stateless_uniform([16, 64, 64, 3], seed=[0, 0]))
    return model


@pytest.fixture(scope="module")
def predictor(model):
    return Predictor(model, PETS)


def predict_files(predictor, pattern, output_dir, skip_existing=False, pages=False, **outputs):
    outputs = Outputs(predictor.classes, **outputs)
    plan = Plan.make(pattern, output_dir, outputs, skip_existing=skip_existing, pages=pages)
    return file_prediction.run_plan(plan, predictor)


def photograph(height=90, width=120, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def test_a_mask_is_an_indexed_png_of_the_photographs_size(predictor, tmp_path):
    Image.fromarray(photograph()).save(tmp_path / "cat.png")
    (mask_file,) = predict_files(predictor, str(tmp_path / "*.png"), str(tmp_path / "out"), cutout=True)
    assert mask_file == tmp_path / "out" / "cat.mask.png"
    mask = Image.open(mask_file)
    assert (mask.mode, mask.size) == ("P", (120, 90))
    probabilities = predictor(photograph()).probabilities
    np.testing.assert_array_equal(np.asarray(mask), probabilities.argmax(-1))
    np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), PETS.palette[np.asarray(mask)])
    assert mask.getpalette() == [*PETS.palette[:3].ravel()]
    assert Image.open(tmp_path / "out" / "cat.overlay.jpg").size == (120, 90)
    cutout = np.asarray(Image.open(tmp_path / "out" / "cat.cutout.png"))
    np.testing.assert_array_equal(cutout[..., :3], photograph())
    np.testing.assert_allclose(cutout[..., 3] / 255, probabilities[..., 0] + probabilities[..., 2] / 2, atol=3e-3)


def test_palette_and_foreground_come_from_the_classes(model, tmp_path):
    streets = {"classes": ["road", {"name": "car", "color": [1, 2, 3], "foreground": True}, "sky"]}
    predictor = Predictor(model, Classes.from_dict(streets), tile=(64, 64))
    Image.fromarray(photograph()).save(tmp_path / "street.png")
    (mask_file,) = predict_files(predictor, str(tmp_path / "*.png"), str(tmp_path / "out"), cutout=True)
    mask, probabilities = Image.open(mask_file), predictor(photograph()).probabilities
    np.testing.assert_array_equal(np.asarray(mask), probabilities.argmax(-1))
    assert mask.getpalette()[3:6] == [1, 2, 3]
    alpha = np.asarray(Image.open(tmp_path / "out" / "street.cutout.png"))[..., 3]
    np.testing.assert_allclose(alpha / 255, probabilities[..., 1], atol=3e-3)
    without = Predictor(model, Classes.from_dict(["road", "car", "sky"]))
    assert without(photograph()).foreground is None
    with pytest.raises(ConfigError, match="--cutout: none of the classes road, car, sky is foreground"):
        check_foreground(without.classes)


def test_unreadable_files_are_reported_and_the_others_are_segmented(predictor, tmp_path, caplog):
    Image.fromarray(photograph(400, 400)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("this is a text")
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.fromarray(photograph(1, 1)).save(tmp_path / "pixel.png")
    with (
        caplog.at_level(logging.WARNING, "petseg"),
        pytest.raises(UnreadableFilesError, match="3 of 5 files cannot be read; the rest is done") as caught,
    ):
        predict_files(predictor, str(tmp_path), str(tmp_path / "out"))
    assert caught.value.exit_code == 4
    assert sorted(message.split(":")[0].rsplit("/", 1)[1] for message in caplog.messages) == [
        "empty.jpg", "text.jpg", "truncated.jpg"
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "out").glob("*.mask.png")} == {"whole.mask.png", "pixel.mask.png"}
    assert Image.open(tmp_path / "out" / "pixel.mask.png").size == (1, 1)


def test_a_photograph_whose_output_cannot_be_written_does_not_end_the_batch(predictor, tmp_path, caplog):
    for name in ("a", "猫" * 81, "z"):  # 243 bytes; with .cutout.png 255, the most that a name may have
        Image.fromarray(photograph()).save(tmp_path / f"{name}.png")
    Image.fromarray(photograph(32, 66_000)).save(tmp_path / "long.png")  # more than a JPEG can be wide
    Image.fromarray(photograph()).save(tmp_path / f"{'n' * 250}.png")
    with (
        caplog.at_level(logging.WARNING, "petseg"),
        pytest.raises(UnreadableFilesError, match="2 of 5 files cannot be written; the rest is done") as caught,
    ):
        predict_files(predictor, str(tmp_path), str(tmp_path / "out"), cutout=True)
    assert caught.value.exit_code == 4
    log = "\n".join(caplog.messages)
    assert re.search(r"long\.png: cannot be written: \.overlay\.jpg: 66000 x 32 pixels .* at most 65500", log)
    assert re.search(r"nnn\.png: cannot be written: .*this name is too long", log)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    for name in ("a", "猫" * 81, "z"):
        assert written >= {f"{name}.mask.png", f"{name}.overlay.jpg", f"{name}.cutout.png"}
    assert written >= {"long.mask.png", "long.cutout.png"}
    assert not [name for name in written if name.endswith(".tmp")]


def test_a_photograph_that_the_network_fails_on_does_not_end_the_batch(model, tmp_path, monkeypatch, caplog):
    predictor = Predictor(model, PETS)
    for i in range(3):
        Image.fromarray(photograph(90 + i, 120, i)).save(tmp_path / f"{i}.png")
    genuine = predictor.run_network

    def run_network(batch):
        if any(each.image.shape[0] == 91 for each in batch):
            raise MemoryError("no memory for 91 rows")
        return genuine(batch)

    monkeypatch.setattr(predictor, "run_network", run_network)
    with pytest.raises(UnreadableFilesError, match="1 of 3 files cannot be segmented; the rest is done"):
        predict_files(predictor, str(tmp_path), str(tmp_path / "out"))
    assert "1.png: cannot be segmented: no memory for 91 rows" in caplog.text
    assert {path.name for path in (tmp_path / "out").glob("*.mask.png")} == {"0.mask.png", "2.mask.png"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_cannot_be_written_ends_the_batch(number, predictor, tmp_path, monkeypatch):
    for i in range(3):
        Image.fromarray(photograph(30, 30, i)).save(tmp_path / f"{i}.png")

    def replace(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(WorkDirectoryError, match=f"--output_dir=.*cannot be written: {os.strerror(number)}"):
        predict_files(predictor, str(tmp_path), str(tmp_path / "out"))


def test_a_pipe_is_reported_and_does_not_block(predictor, tmp_path, caplog):
    Image.fromarray(photograph()).save(tmp_path / "cat.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableFilesError, match="1 of 2 files cannot be read"):
        predict_files(predictor, str(tmp_path), str(tmp_path / "out"))
    assert "pipe.jpg: cannot be read: is not a regular file; must be an image file" in caplog.text


def test_an_unwritable_output_folder_is_an_error(predictor, tmp_path):
    Image.fromarray(photograph()).save(tmp_path / "cat.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkDirectoryError, match=r"--output_dir=.*/file/out: .* cannot be written"):
        predict_files(predictor, str(tmp_path / "cat.jpg"), str(tmp_path / "file" / "out"))


def test_batches_give_the_same_masks_as_single_photographs(model, tmp_path, monkeypatch):
    images = [photograph(30 + 7 * i, 90 - 5 * i, i) for i in range(11)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    sizes, genuine = [], KerasRunner.logits
    monkeypatch.setattr(KerasRunner, "logits", lambda self, batch: sizes.append(len(batch)) or genuine(self, batch))
    for tile in (None, (64, 64)):  # in tiles, some are taken as a whole all the same
        predictor = Predictor(model, PETS, tile=tile)
        assert predictor.batch_size == 8
        one_by_one = [predictor(image) for image in images]
        sizes.clear()
        batched = list(predictor.predict(images))
        assert max(sizes) > 1
        assert tile or sizes == [8, 3]
        masks = predict_files(predictor, str(tmp_path), str(tmp_path / f"out{tile}"), cutout=True)
        for expected, found, file in zip(one_by_one, batched, masks, strict=True):
            np.testing.assert_array_equal(found.mask, expected.mask)
            np.testing.assert_array_equal(found.foreground, expected.foreground)
            np.testing.assert_array_equal(Image.open(file), expected.mask)
            cutout = Image.open(file.with_name(file.name.replace("mask", "cutout")))
            np.testing.assert_array_equal(np.asarray(cutout)[..., 3], expected.foreground)


@pytest.mark.parametrize(("pixels", "most"), [(10**9, 24), (2500, 2500 // 900)])
def test_photographs_and_pixels_in_memory_are_limited(predictor, tmp_path, monkeypatch, pixels, most):
    for i in range(40):
        Image.fromarray(photograph(30, 30, i)).save(tmp_path / f"{i:02}.png")
    Image.fromarray(photograph(100, 100)).save(tmp_path / "20-large.png")
    lock, there, seen = threading.Lock(), set(), []
    read, write = file_prediction.images.read, Plan.write

    def reading(file, *args, **options):
        with lock:
            there.add(file.name)
            seen.append(set(there))
        return read(file, *args, **options)

    def writing(self, photograph, *args):
        try:
            return write(self, photograph, *args)
        finally:
            with lock:
                there.discard(photograph.file.name)

    monkeypatch.setattr(file_prediction.images, "read", reading)
    monkeypatch.setattr(Plan, "write", writing)
    monkeypatch.setattr(file_prediction, "MOST_BYTES", 4 * pixels)
    masks = predict_files(predictor, str(tmp_path), str(tmp_path / "out"))
    assert [mask.name[:2] for mask in masks] == [f"{i:02}" for i in range(21)] + [f"{i:02}" for i in range(20, 40)]
    assert 1 < max(map(len, seen)) <= most
    if pixels < 10**4:
        assert all(each == {"20-large.png"} for each in seen if "20-large.png" in each)


def test_photographs_of_many_channels_count_by_their_bytes(tmp_path, monkeypatch):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.zeros((30, 30, 32), np.uint16))
    plan = Plan.make(str(tmp_path), str(tmp_path / "out"), Outputs(PETS))
    thirty_two = types.SimpleNamespace(batch_size=8, image_spec=ImageSpec(32, "uint16"), prepare=lambda image: image)
    monkeypatch.setattr(file_prediction, "MOST_BYTES", 2.5 * 30 * 30 * 64)
    with file_prediction._Pipeline(plan, thirty_two) as pipeline:
        pipeline._read_ahead()
        assert len(pipeline._reading) == 2


def test_pages_of_a_stack_are_read_from_one_content(predictor, tmp_path, monkeypatch):
    pages = [Image.fromarray(photograph(seed=seed)) for seed in range(5)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    parsed, parse = [], tifffile.TiffFile
    monkeypatch.setattr(tifffile, "TiffFile", lambda *arguments: parsed.append(1) or parse(*arguments))
    masks = predict_files(predictor, str(tmp_path / "scan.tif"), str(tmp_path / "out"), pages=True)
    assert len(parsed) <= 4  # for its georeference, its number of pages, its size and its pixels
    for page, file in zip(pages, masks, strict=True):
        np.testing.assert_array_equal(Image.open(file), predictor(np.asarray(page)).mask)


def test_the_log_sums_up_and_existing_outputs_can_be_skipped(predictor, tmp_path, caplog):
    for name in ("a.png", "sub/b.png"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(photograph()).save(tmp_path / "in" / name)
    predict = functools.partial(predict_files, predictor, str(tmp_path / "in"), str(tmp_path / "out"))
    with caplog.at_level(logging.INFO, "petseg"):
        assert len(predict()) == 2
        (tmp_path / "out" / "sub" / "b.mask.png").unlink()
        assert predict(skip_existing=True) == [tmp_path / "out" / "sub" / "b.mask.png"]
    speed = r"in \d+\.\d s, \d+\.\d images/s"
    assert re.fullmatch(rf"wrote the masks of 2 photographs to {tmp_path}/out {speed}", caplog.messages[0])
    assert re.fullmatch(
        rf"wrote the masks of 1 photograph to {tmp_path}/out {speed}; skipped 1 that existed",
        caplog.messages[1],
    )


MANY = """
import resource, sys
from petseg.classes import PETS
from petseg.deployment import file_prediction
from petseg.deployment.output_files import Outputs
from petseg.deployment.photograph_files import Plan
from petseg.deployment.predictor import Predictor
from petseg.models import encoders, unet
size = (64, 64)
encoder = encoders.build_encoder("tiny", image_size=size)
model = unet.build_unet(image_size=size, num_classes=3, encoder=encoder, train_encoder=False, input_scaling="unit")
predictor = Predictor(model, PETS)
for pattern in ("large.jpg", "[0-9]*.jpg"):
    plan = Plan.make(f"{sys.argv[1]}/{pattern}", f"{sys.argv[1]}/out", Outputs(PETS))
    print(len(file_prediction.run_plan(plan, predictor)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files_and_24_megapixels_work(tmp_path):
    Image.fromarray(photograph(4000, 6000)).save(tmp_path / "large.jpg")
    for i in range(30):
        Image.fromarray(photograph(1000, 1500, i)).save(tmp_path / f"{i}.jpg")
    # A process of its own: what other tests leave behind in this one is not counted.
    result = programs_in_forks.run("-c", MANY, tmp_path)
    assert result.returncode == 0, result.stderr
    one, peak, thirty, peak_of_all = map(int, result.stdout.split())
    assert (one, thirty) == (1, 30)
    assert Image.open(tmp_path / "out" / "large.mask.png").size == (6000, 4000)
    assert peak_of_all <= peak * 1.02


LARGE = """
import os, resource, sys
import numpy as np
from petseg.classes import PETS
from petseg.deployment import file_prediction
from petseg.deployment.predictor import Predictor
from petseg.models import encoders, unet
size = (128, 128)
encoder = encoders.build_encoder("tiny", image_size=size)
model = unet.build_unet(image_size=size, num_classes=3, encoder=encoder, train_encoder=False, input_scaling="unit")
predictor = Predictor(model, PETS, tile=(512, 512))
predictor(np.zeros((600, 600, 3), np.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = predictor(np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), np.uint8))
assert found.mask.shape == found.foreground.shape == (4000, 6000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_tiled_inference_on_24_megapixels_takes_little_memory():
    result = programs_in_forks.run("-c", LARGE)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 400  # MiB; as a whole, the probabilities alone are 275, and their making thrice that


@pytest.mark.slow
def test_eval_predict_writes_outputs_and_exits_4_if_a_file_is_unreadable(finished_run, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(photograph()).save(tmp_path / "photos" / "cat.jpg")
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    flags = [f"--workdir={workdir}", f"--output_dir={tmp_path / 'out'}"]
    result = programs_in_forks.run("eval.py", *flags, f"--predict={tmp_path}/photos/*.jpg", "--cutout")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cat.mask.png", "cat.overlay.jpg", "cat.cutout.png"}
    (tmp_path / "photos" / "text.jpg").write_text("this is a text")
    result = programs_in_forks.run("eval.py", *flags, f"--predict={tmp_path}/photos")
    assert result.returncode == 4
    lines = own_lines(result.stderr)
    assert any("text.jpg: cannot be read: " in line for line in lines)
    assert lines[-1] == "eval.py: error: 1 of 2 files cannot be read; the rest is done"
    for flag, message in (
        (f"--predict={tmp_path}/none/*.jpg", "matches no file"),
        ("--checkpoint=all", f"--output_dir={tmp_path / 'out'}: must come with --predict"),
    ):
        result = programs_in_forks.run("eval.py", *flags, flag)
        assert result.returncode == 2
        assert message in own_lines(result.stderr)[-1]
        assert "Traceback" not in result.stderr


def test_what_a_run_does_not_take_is_refused_by_name_and_unused_opacity_is_logged_once(predictor, tmp_path, caplog):
    for name in ("a.png", "b.png"):
        opacity = np.arange(90 * 120, dtype=np.uint32).reshape(90, 120).astype(np.uint8)
        Image.fromarray(np.dstack([photograph(), opacity])).save(tmp_path / name)
    Image.fromarray(photograph()[..., 0].astype(np.uint16) * 16).save(tmp_path / "deep.png")
    frames = [Image.fromarray(photograph(seed=seed)) for seed in (0, 1)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.INFO, "petseg"), pytest.raises(UnreadableFilesError, match="2 of 4 files cannot be"):
        predict_files(predictor, str(tmp_path), str(tmp_path / "out"))
    lines = [line for line in caplog.messages if "alpha channel" in line]
    assert lines == [f"2 photographs: the first, {tmp_path}/a.png, {images.UNUSED_OPACITY}"]
    refused = {line for line in caplog.messages if "cannot be read" in line}
    assert len(refused) == 2
    deep = "deep.png: cannot be read: has 1 channel of 16 bits; the network was trained on images of 8 bits"
    assert any(deep in line for line in refused)
    assert any("moving.gif: cannot be read: holds 2 pages; must hold one" in line for line in refused)
