import io
import os
import sys

import numpy as np
import pytest
from conftest import NUM_TEST, NUM_TRAIN
from made_folders import config, mask, pairs, picture, save, write
from PIL import Image

from petseg.config import DataConfig, command_line
from petseg.data import check
from petseg.data.check import CheckConfig, CheckOptions
from petseg.data.folders import inspection
from petseg.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "mine", {**pairs("a", "b", "c", folder="train/"), **pairs("d", "e", folder="test/")})
    (tmp_path / "mine" / "classes.json").write_text('{"classes": ["sky", "sea", "sand"]}')
    return tmp_path / "mine"


@pytest.fixture
def run(capsys, tmp_path):
    def run_check(data, **options):
        """What is printed, and the error, empty if there is none."""
        error = ""
        try:
            check.main(CheckConfig(data, CheckOptions(output_dir=str(tmp_path / "out"), **options)))
        except DataError as raised:
            error = str(raised)
        return capsys.readouterr().out, error

    return run_check


def test_the_program_ends_with_exit_code_2_and_one_line(root, monkeypatch, capsys):
    save(root / "images/test/e.jpg", b"nothing")
    flags = ["--dataset=folder", f"--data_dir={root}", "--overlays=0"]
    monkeypatch.setattr(sys, "argv", ["check.py", *flags])
    with pytest.raises(SystemExit) as stop:
        command_line.run(check.main, CheckConfig, check.__doc__)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "check.py: error: 1 fault, printed above; fix them before training\n"


def test_a_valid_folder_prints_its_statistics_and_suggestions(root, run, tmp_path):
    for file in root.glob("masks/test/*"):
        save(file, mask(0, 0, 1, 255))
    printed, error = run(config(root))
    assert not error
    assert printed.splitlines() == [
        "mine: 5 pairs; train 3, test 2",
        "splits: folders, images/{split}/**/*",
        "classes: 3 of classes.json",
        "modes of images: RGB 5",
        "modes of masks: L 5",
        "sizes (height x width): all 12 x 16",
        "class        value     train: pixels   images      test: pixels   images",
        "sky              0            37.50%        3            66.67%        2",
        "sea              1            31.25%        3            33.33%        2",
        "sand             2            31.25%        3             0.00%        0",
        "in no class                    0.00%        0            25.00%        2",
        "suggested: --image_size=32",
        "suggested, to give rare classes the same weight: --class_weights=0.294,0.353,0.353",
        f"overlays: {tmp_path}/out/mine-overlays.jpg",
        "note: split test has no pixel of sand",
        "nothing is wrong",
    ]


def test_the_sheet_shows_images_beside_their_overlays(root, run, tmp_path):
    for file in root.glob("images/*/*"):
        save(file, np.full((12, 16, 3), 200, np.uint8))
    for file in root.glob("masks/*/*"):
        save(file, mask(1))
    save(root / "masks/train/a.png", mask(0, 1, 2, 255))
    run(config(root), overlays=1)
    with Image.open(tmp_path / "out" / "mine-overlays.jpg") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] > 2 * 240
    middle = pixels[100]
    assert np.abs(middle[120].astype(int) - 200).max() < 6  # the picture itself
    assert np.abs(middle[257].astype(int) - [80, 148, 187]).max() < 12  # 60% of the first class's colour
    assert np.abs(middle[302].astype(int) - 50).max() < 12  # in no class: dark


def test_zero_overlays_write_no_sheet(root, run, tmp_path):
    run(config(root), overlays=0)
    assert not (tmp_path / "out").exists()


def test_a_tfds_data_set_is_checked(data_dir, run):
    printed, error = run(DataConfig(dataset="synthetic_pets", data_dir=str(data_dir)))
    assert not error
    assert f"{NUM_TRAIN + NUM_TEST} pairs; " in printed
    assert "border" in printed
    assert "nothing is wrong" in printed


def test_every_fault_is_printed_and_ends_the_program(root, run):
    (root / "masks/train/a.png").unlink()
    save(root / "masks/train/b.png", mask(0, 9))
    save(root / "images/test/d.jpg", picture(20, 20))
    save(root / "images/test/e.jpg", b"nothing")
    printed, error = run(config(root))
    assert error == "4 faults, printed above; fix them before training"
    start = printed.index("faults: ")
    assert printed[start:].splitlines() == [
        "faults: 1 images without a mask",
        "faults: 1 masks with values in no class",
        "faults: 1 images and masks of different sizes",
        "faults: 1 files that cannot be read",
        "  images/train/a.jpg: has no mask; must be masks/train/a.png",
        "  masks/train/b.png: holds value 9 in no class (96 pixels, the first at row 0, column 1); "
        "must be 0 to 2, or 255 (in no class)",
        "  images/test/d.jpg: is 20 x 20 (height x width), its mask masks/test/d.png 12 x 16; both must be one size",
        "  images/test/e.jpg: cannot be read: 7 bytes of no known format; must be a complete image",
    ]


def test_a_folder_without_pairs_is_reported(root, run):
    for file in root.glob("masks/*/*"):
        file.rename(file.with_stem(file.stem + "_mask"))
    for classes in ("given", "found"):
        printed, error = run(config(root))
        assert printed.startswith("mine: 0 pairs")
        assert error.startswith("10 faults")
        if classes == "given":
            (root / "classes.json").unlink()


def test_of_many_faults_the_first_are_printed_and_the_others_counted(root, run):
    write(root, {f"images/train/more{i}.jpg": None for i in range(25)})
    printed, error = run(config(root))
    assert printed.count("has no mask") == 20
    assert "  and 5 more\n" in printed
    assert error.startswith("25 faults")


def test_masks_of_0_and_255_without_a_classes_file_are_a_fault(root, run):
    (root / "classes.json").unlink()
    for file in root.glob("masks/*/*"):
        save(file, mask(0, 255))
    printed, error = run(config(root))
    assert 'must be {"classes": [{"name": "background", "value": 0}, {"name": "object", "value": 255}]}' in printed
    assert error.startswith("1 fault,")


def test_a_jpeg_mask_is_a_fault(root, run):
    buffer = io.BytesIO()
    Image.fromarray(mask()).save(buffer, "JPEG")
    save(root / "masks/train/a.png", buffer.getvalue())
    for found in (True, False):
        printed, error = run(config(root))
        assert "masks/train/a.png: is a mask in JPEG, which changes values at every edge; must be a PNG" in printed
        assert error
        if found:
            (root / "classes.json").unlink()


def test_values_of_unlisted_classes_are_faults(root, run):
    (root / "classes.json").write_text('["sky", "sea"]')
    printed, error = run(config(root))
    assert "masks/train/a.png: holds value 2 in no class" in printed
    assert error.startswith("5 faults")


def test_an_image_in_two_splits_is_a_note(root, run):
    (root / "images/test/d.jpg").write_bytes((root / "images/train/c.jpg").read_bytes())
    printed, error = run(config(root))
    assert not error
    shared = "train: images/train/c.jpg = test: images/test/d.jpg"
    assert f"note: 1 images are in two splits or more, byte by byte: {shared}" in printed


def test_masks_of_a_single_class_are_a_note(root, run):
    save(root / "masks/train/a.png", mask(1))
    printed, _ = run(config(root))
    assert "note: split train: 1 masks are entirely in sea: images/train/a.jpg" in printed


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(360, 480)] * 3, "--image_size=352,480"),
        ([(3000, 4000)] * 3, "--image_size=384,512"),
        ([(100, 100)], "--image_size=96"),
        ([(300, 400), (400, 300)] * 5, "--image_size=352 --resize=letterbox"),
        ([(20, 20)], "--image_size=32"),
    ],
)
def test_suggested_image_size_follows_median_and_shapes(sizes, expected):
    found = inspection.Inspection(None)
    found.sizes.update(sizes)
    assert found.suggested_size() == expected


def test_very_tall_images_fit_on_the_sheet(root, run, tmp_path):
    for i, file in enumerate(sorted(root.glob("images/*/*"))):
        size = {"height": 8, "width": 3000} if i == 0 else {"height": 4000, "width": 8}
        save(file, picture(**size))
        save(root / "masks" / file.parent.name / f"{file.stem}.png", mask(**size))
    printed, error = run(config(root), overlays=120)
    assert not error
    assert "nothing is wrong" in printed
    with Image.open(tmp_path / "out" / "mine-overlays.jpg") as sheet:
        assert max(sheet.size) < 5000


def test_faults_are_printed_before_the_sheet_is_drawn(root, capsys, tmp_path):
    save(root / "images/test/e.jpg", b"nothing")
    (tmp_path / "file").write_text("")
    options = CheckOptions(output_dir=str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"--output_dir=.*cannot be written"):
        check.main(CheckConfig(config(root), options))
    assert "images/test/e.jpg: cannot be read: 7 bytes of no known format" in capsys.readouterr().out


def test_names_that_are_not_utf_8_can_be_printed(root, run):
    os.rename(root / "images/train/a.jpg", os.fsencode(root) + b"/images/train/caf\xe9.jpg")
    os.rename(root / "masks/train/a.png", os.fsencode(root) + b"/masks/train/caf\xe9.png")
    assert not run(config(root))[1]
    save(root / "images/train/b.jpg", b"nothing")
    os.unlink(os.fsencode(root) + b"/masks/train/caf\xe9.png")
    printed, error = run(config(root))
    assert error.startswith("2 faults")
    assert "images/train/caf\\xe9.jpg: has no mask; must be masks/train/caf\\xe9.png" in printed


def test_faults_of_a_split_that_no_flag_names_are_a_note(root, run):
    write(root, pairs("y", "z", folder="val/"))
    save(root / "masks/val/y.png", mask(0, 9))
    save(root / "images/val/z.jpg", b"nothing")
    write(root, {"images/extra/x.jpg": None})
    printed, error = run(config(root))
    assert not error
    assert "note: split val is left out: masks/val/y.png: holds value 9 in no class" in printed
    assert "; and 1 more\n" in printed
    assert "note: split extra is left out: images/extra/x.jpg: has no mask" in printed
    assert "nothing is wrong" in printed
    printed, error = run(config(root, eval_split="val"))
    assert error.startswith("2 faults")
    assert "faults: 1 masks with values in no class" in printed


def test_a_flag_that_names_no_split_is_a_note(root, run):
    printed, error = run(config(root, eval_split="val"))
    assert not error
    assert "note: --eval_split=val: there is no such split; to train, it must be one of train, test\n" in printed


def test_a_missing_split_of_a_tfds_data_set_is_a_note(data_dir, run):
    printed, _ = run(DataConfig(dataset="synthetic_pets", data_dir=str(data_dir), eval_split="val[:10%]"), overlays=0)
    assert "note: --eval_split=val[:10%]: there is no such split" in printed
