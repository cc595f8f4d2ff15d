"""Masks for files of every kind that people have, and for some that they should not have."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, own_lines, run_program, tiny_flags
from PIL import Image

from petseg.classes import PETS, Classes
from petseg.config import Config, command_line
from petseg.deployment import photograph_files, photographs, prediction
from petseg.errors import ConfigError, DataError, UnreadableFilesError, WorkDirectoryError
from petseg.models import encoders, unet
from petseg.runs import experiment


@pytest.fixture(scope="module")
def model():
    encoder = encoders.build_encoder("tiny", image_size=(64, 64))
    model = unet.build_unet(
        image_size=(64, 64), num_classes=3, encoder=encoder, train_encoder=False, input_scaling="unit"
    )
    encoders.calibrate_batch_norm(encoder, tf.random.stateless_uniform([16, 64, 64, 3], seed=[0, 0]))
    return model


@pytest.fixture(scope="module")
def predictor(model):
    return prediction.Predictor(model, PETS)


def photograph(height=90, width=120, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def test_a_mask_is_an_indexed_png_of_the_photographs_size(predictor, tmp_path):
    Image.fromarray(photograph()).save(tmp_path / "cat.png")
    (mask_file,) = prediction.predict_files(predictor, str(tmp_path / "*.png"), str(tmp_path / "out"), cutout=True)
    assert mask_file == tmp_path / "out" / "cat.mask.png"
    mask = Image.open(mask_file)
    assert (mask.mode, mask.size) == ("P", (120, 90))
    probabilities = predictor.probabilities(photograph())
    np.testing.assert_array_equal(np.asarray(mask), probabilities.argmax(-1))
    np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), PETS.palette[np.asarray(mask)])
    assert mask.getpalette() == [*PETS.palette[:3].ravel()]
    assert Image.open(tmp_path / "out" / "cat.overlay.jpg").size == (120, 90)
    cutout = np.asarray(Image.open(tmp_path / "out" / "cat.cutout.png"))
    np.testing.assert_array_equal(cutout[..., :3], photograph())
    np.testing.assert_allclose(cutout[..., 3] / 255, probabilities[..., 0] + probabilities[..., 2] / 2, atol=3e-3)


def test_masks_and_cut_outs_are_those_of_the_classes(model, tmp_path):
    streets = {"classes": ["road", {"name": "car", "color": [1, 2, 3], "foreground": True}, "sky"]}
    predictor = prediction.Predictor(model, Classes.from_dict(streets), tile=(64, 64))
    Image.fromarray(photograph()).save(tmp_path / "street.png")
    (mask_file,) = prediction.predict_files(predictor, str(tmp_path / "*.png"), str(tmp_path / "out"), cutout=True)
    mask, probabilities = Image.open(mask_file), predictor.probabilities(photograph())
    np.testing.assert_array_equal(np.asarray(mask), probabilities.argmax(-1))
    assert mask.getpalette()[3:6] == [1, 2, 3]
    alpha = np.asarray(Image.open(tmp_path / "out" / "street.cutout.png"))[..., 3]
    np.testing.assert_allclose(alpha / 255, probabilities[..., 1], atol=3e-3)
    without = prediction.Predictor(model, Classes.from_dict(["road", "car", "sky"]))
    assert without(photograph()).foreground is None
    with pytest.raises(ConfigError, match="--cutout: none of the classes road, car, sky is foreground"):
        prediction.predict_files(without, str(tmp_path / "*.png"), str(tmp_path / "none"), cutout=True)
    assert not (tmp_path / "none").exists()


def saved(tmp_path, name, picture, **options):
    picture.save(tmp_path / name, **options)
    return photographs.read_image(tmp_path / name)


def test_pictures_are_read_as_people_see_them(tmp_path):
    image = photograph()
    grey = np.asarray(Image.fromarray(image).convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown a quarter turn clockwise
    turned = saved(tmp_path, "turned.png", Image.fromarray(image), exif=exif)
    np.testing.assert_array_equal(turned, np.rot90(image, -1))
    grey_rgb = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(saved(tmp_path, "grey.png", Image.fromarray(grey)), grey_rgb)
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(saved(tmp_path, "sixteen.png", sixteen), grey_rgb)
    np.testing.assert_array_equal(saved(tmp_path, "sixteen.tif", sixteen), grey_rgb)
    palette = Image.fromarray(image).quantize(256)
    np.testing.assert_array_equal(saved(tmp_path, "palette.png", palette), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(
        saved(tmp_path, "one.png", Image.fromarray(grey > 128)), np.uint8(grey_rgb > 128) * 255
    )
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[:10] = 0
    transparent = saved(tmp_path, "alpha.png", Image.fromarray(np.dstack([image, alpha])))
    assert (transparent[:10] == 255).all()
    np.testing.assert_array_equal(transparent[10:], image[10:])
    cmyk = saved(tmp_path, "cmyk.jpg", Image.fromarray(image).convert("CMYK"))
    assert cmyk.shape == image.shape
    assert cmyk.dtype == np.uint8


def test_folders_globs_and_files_of_one_name(predictor, tmp_path):
    for name in ("a/cat.jpg", "a/cat.PNG", "b/cat.jpg", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).write_text("no photograph")
        else:
            Image.fromarray(photograph(40, 40)).save(tmp_path / name)
    assert [file.name for file in photograph_files.find_files(str(tmp_path / "b"))] == ["cat.jpg"]
    masks = prediction.predict_files(predictor, str(tmp_path / "*" / "cat.*"), str(tmp_path / "out"))
    names = [str(mask.relative_to(tmp_path / "out")) for mask in masks]
    assert names == ["a/cat.PNG.mask.png" if "PNG" in str(m) else n for n, m in zip(names, masks, strict=True)]
    assert sorted(names) == ["a/cat.PNG.mask.png", "a/cat.jpg.mask.png", "b/cat.mask.png"]
    with pytest.raises(DataError, match="matches no file"):
        photograph_files.find_files(str(tmp_path / "*.jpg"))


def test_what_is_no_photograph_is_reported_and_the_rest_is_done(predictor, tmp_path, caplog):
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
        prediction.predict_files(predictor, str(tmp_path), str(tmp_path / "out"))
    assert caught.value.exit_code == 4
    assert sorted(message.split(":")[0].rsplit("/", 1)[1] for message in caplog.messages) == [
        "empty.jpg", "text.jpg", "truncated.jpg"
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "out").glob("*.mask.png")} == {"whole.mask.png", "pixel.mask.png"}
    assert Image.open(tmp_path / "out" / "pixel.mask.png").size == (1, 1)


def test_an_output_folder_that_cannot_be_written(predictor, tmp_path):
    Image.fromarray(photograph()).save(tmp_path / "cat.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkDirectoryError, match=r"--output_dir=.*/file/out: .* cannot be written"):
        prediction.predict_files(predictor, str(tmp_path / "cat.jpg"), str(tmp_path / "file" / "out"))


def test_photographs_of_nearly_one_name_get_masks_of_their_own(predictor, tmp_path, caplog):
    names = ["Cat.jpg", "a.jpg", "a.jpg.png", "a.png", "cat.jpg", "cat.png", "dog.png"]
    for number, name in enumerate(names):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(photograph(20, 20 + number)).save(tmp_path / "in" / name)
    with caplog.at_level(logging.WARNING, "petseg"):
        masks = prediction.predict_files(predictor, str(tmp_path / "in"), str(tmp_path / "out"))
    assert [Image.open(mask).size[0] - 20 for mask in masks] == list(range(7))
    written = [path.name.lower() for path in (tmp_path / "out").iterdir()]
    assert len(set(written)) == len(written) == 14
    assert masks[-1].name == "dog.mask.png"
    assert "6 photographs share a name" in caplog.text or "5 photographs share a name" in caplog.text
    assert "cat.png -> cat.png.mask.png" in caplog.text


def test_nothing_of_a_users_is_overwritten(predictor, tmp_path):
    Image.fromarray(photograph()).save(tmp_path / "cat.jpg")
    drawn = np.zeros((90, 120), np.uint8)
    Image.fromarray(drawn).save(tmp_path / "cat.mask.png")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(WorkDirectoryError, match=r"cat\.mask\.png would be overwritten.*must be another folder"):
        prediction.predict_files(predictor, str(tmp_path / "cat.jpg"), str(tmp_path))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_own_outputs_are_replaced_and_never_taken_for_photographs(predictor, tmp_path, caplog):
    Image.fromarray(photograph()).save(tmp_path / "cat.jpg")
    for pattern in (tmp_path, tmp_path, tmp_path / "*"):
        with caplog.at_level(logging.INFO, "petseg"):
            (mask,) = prediction.predict_files(predictor, str(pattern), str(tmp_path), cutout=True)
        assert {file.name for file in tmp_path.iterdir()} == {
            "cat.jpg", "cat.mask.png", "cat.overlay.jpg", "cat.cutout.png"
        }  # fmt: skip
    assert "3 files that petseg wrote are no photographs: passed over" in caplog.text
    with pytest.raises(DataError, match="matches only masks and overlays that petseg wrote"):
        photograph_files.find_files(str(tmp_path / "*.mask.png"))
    changed = np.asarray(Image.open(mask)).copy()
    changed[:5] = 1  # a user corrects a mask: from now on it is his
    Image.fromarray(changed).save(mask)
    with pytest.raises(WorkDirectoryError, match="is not as petseg wrote it"):
        prediction.predict_files(predictor, str(tmp_path / "cat.jpg"), str(tmp_path))
    np.testing.assert_array_equal(np.asarray(Image.open(mask)), changed)


MANY = """
import resource, sys
from petseg.classes import PETS
from petseg.deployment import prediction
from petseg.models import encoders, unet
size = (64, 64)
encoder = encoders.build_encoder("tiny", image_size=size)
model = unet.build_unet(image_size=size, num_classes=3, encoder=encoder, train_encoder=False, input_scaling="unit")
predictor = prediction.Predictor(model, PETS)
for pattern in ("large.jpg", "[0-9]*.jpg"):
    print(len(prediction.predict_files(predictor, f"{sys.argv[1]}/{pattern}", f"{sys.argv[1]}/out")))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files_and_24_megapixels_work(tmp_path):
    Image.fromarray(photograph(4000, 6000)).save(tmp_path / "large.jpg")
    for i in range(30):
        Image.fromarray(photograph(1000, 1500, i)).save(tmp_path / f"{i}.jpg")
    # A process of its own: what other tests leave behind in this one is not counted.
    result = subprocess.run([sys.executable, "-c", MANY, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    one, peak, thirty, peak_of_all = map(int, result.stdout.split())
    assert (one, thirty) == (1, 30)
    assert Image.open(tmp_path / "out" / "large.mask.png").size == (6000, 4000)
    assert peak_of_all <= peak * 1.02


LARGE = """
import os, resource, sys
import numpy as np
from petseg.classes import PETS
from petseg.deployment import prediction
from petseg.models import encoders, unet
size = (128, 128)
encoder = encoders.build_encoder("tiny", image_size=size)
model = unet.build_unet(image_size=size, num_classes=3, encoder=encoder, train_encoder=False, input_scaling="unit")
predictor = prediction.Predictor(model, PETS, tile=(512, 512))
predictor(np.zeros((600, 600, 3), np.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = predictor(np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), np.uint8))
assert found.classes.shape == found.foreground.shape == (4000, 6000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_in_tiles_24_megapixels_take_little_memory():
    result = subprocess.run([sys.executable, "-c", LARGE], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 400  # MiB; as a whole, the probabilities alone are 275, and their making thrice that


@pytest.mark.slow
def test_as_a_program(data_dir, tmp_path):
    workdir = tmp_path / "run"
    experiment.train(command_line.parse(["train.py", *tiny_flags(data_dir, workdir), "--train_steps=1"], Config))
    (tmp_path / "photos").mkdir()
    Image.fromarray(photograph()).save(tmp_path / "photos" / "cat.jpg")
    flags = [f"--workdir={workdir}", f"--output_dir={tmp_path / 'out'}"]
    result = run_program("eval.py", *flags, f"--predict={tmp_path}/photos/*.jpg", "--cutout")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cat.mask.png", "cat.overlay.jpg", "cat.cutout.png"}
    (tmp_path / "photos" / "text.jpg").write_text("this is a text")
    result = run_program("eval.py", *flags, f"--predict={tmp_path}/photos")
    assert result.returncode == 4
    lines = own_lines(result.stderr)
    assert any("text.jpg: cannot be read: " in line for line in lines)
    assert lines[-1] == "eval.py: error: 1 of 2 files cannot be read; the rest is done"
    for flag, message in (
        (f"--predict={tmp_path}/none/*.jpg", "matches no file"),
        ("--checkpoint=all", f"--output_dir={tmp_path / 'out'}: must come with --predict"),
    ):
        result = run_program("eval.py", *flags, flag)
        assert result.returncode == 2
        assert message in own_lines(result.stderr)[-1]
        assert "Traceback" not in result.stderr
