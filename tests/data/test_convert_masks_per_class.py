"""Conversion of a mask for each class."""

import numpy as np
import pytest
from made_annotations import HEIGHT, WIDTH, filled, names, turned_picture
from made_folders import picture, save
from PIL import Image

from petseg.errors import DataError


@pytest.mark.parametrize(
    ("image", "cat", "light"),
    [
        ("images/a_1.jpg", "masks/cat/a_1.png", "masks/traffic light/a_1.png"),
        ("images/a_1.jpg", "masks/a_1_cat.png", "masks/a_1_traffic light.png"),
        ("images/a_1.jpg", "masks/a_1/cat.png", "masks/a_1/traffic light.png"),
        ("a_1.jpg", "a_1_cat.png", "a_1-traffic light.png"),
    ],
)
def test_layouts(annotations, convert, tmp_path, image, cat, light):
    save(annotations / image, picture())
    save(annotations / cat, filled((2, 2, 6, 6, 255)))
    save(annotations / light, filled((0, 4, 12, 16, 1)))
    masks, printed = convert("masks_per_class")
    assert names(tmp_path) == ["background", "cat", "traffic_light"]
    np.testing.assert_array_equal(masks["a_1.png"], filled((0, 4, 12, 16, 2), (2, 2, 6, 6, 1)))
    assert "8 pixels in 1 images are of objects of several classes" in printed


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (WIDTH, HEIGHT)])
def test_masks_of_photographs_that_exif_turns(annotations, convert, size):
    save(annotations / "images/a.jpg", turned_picture(8))
    save(annotations / "masks/cat/a.png", filled((0, 0, 2, 3, 255), size=size))
    masks, _ = convert("masks_per_class")
    upright = filled((0, 0, 2, 3, 1), size=size)
    np.testing.assert_array_equal(masks["a.png"], np.rot90(upright) if size == (HEIGHT, WIDTH) else upright)


def test_splits_longest_names_and_pictures_without_masks(annotations, convert):
    for name in ("train/a", "train/a_b", "test/a"):
        save(annotations / f"images/{name}.jpg", picture(seed=len(name)))
    save(annotations / "masks/train/a_b_cat.png", Image.fromarray(filled((2, 2, 6, 6, 1)).astype(bool)))
    save(annotations / "masks/test/a_cat.png", filled((1, 1, 2, 2, 255)))
    save(annotations / "masks/test/z_cat.png", filled((1, 1, 2, 2, 255)))
    masks, printed = convert("masks_per_class")
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "test/a.png": 1, "train/a.png": 0, "train/a_b.png": 16,
    }  # fmt: skip
    assert "1 images have no object" in printed
    assert "left out: 1 masks without a picture, the first is masks/test/z_cat.png" in printed


def test_pictures_and_masks_of_whole_pictures_are_no_classes(annotations, convert, tmp_path):
    for name in ("a", "a_b"):
        save(annotations / f"images/{name}.jpg", picture())
    for name in ("a_b", "a_cat"):
        save(annotations / f"masks/{name}.png", filled((2, 2, 6, 6, 255)))
    masks, printed = convert("masks_per_class")
    assert names(tmp_path) == ["background", "cat"]
    assert "left out: 1 masks without a picture, the first is masks/a_b.png" in printed
    assert {name for name, mask in masks.items() if mask.any()} == {"a.png"}


def test_photographs_in_the_folder_of_the_masks_are_no_masks(annotations, convert, tmp_path):
    for name in ("a.jpg", "a_1.jpg"):
        save(annotations / name, picture())
    save(annotations / "a_1_cat.png", filled((2, 2, 6, 6, 255)))
    masks, _ = convert("masks_per_class")
    assert names(tmp_path) == ["background", "cat"]
    assert {name for name, mask in masks.items() if mask.any()} == {"a_1.png"}
    assert set(masks) == {"a.png", "a_1.png"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "cat/a.png",
            filled((0, 0, 1, 1, 7), (2, 2, 3, 3, 9)),
            r"^masks/cat/a\.png: holds 7 and 9; must be black and one",
        ),
        ("cat/a.png", filled(size=(5, 5)), r"is 5 x 5 \(height x width\), its picture 12 x 16"),
        ("cat/a.jpg", filled((0, 0, 5, 5, 255)), "is a mask in JPEG"),
        ("cat/a.png", b"nothing", "cannot be read"),
        ("cat/b.png", filled((0, 0, 5, 5, 255)), "no mask belongs to a picture"),
    ],
)
def test_invalid_masks_end_in_one_line(annotations, convert, name, content, message):
    save(annotations / "images/a.jpg", picture())
    save(annotations / "masks" / name, content)
    with pytest.raises(DataError, match=message):
        convert("masks_per_class")
