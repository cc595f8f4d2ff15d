"""Conversion of YOLO's segmentation labels."""

import numpy as np
import pytest
from made_annotations import describe_yolo, filled, label_yolo, names
from made_folders import picture, save

from petseg.errors import DataError


@pytest.fixture
def yolo(annotations):
    for split in ("train", "val"):
        save(annotations / f"images/{split}/a.jpg", picture(seed=len(split)))
        label_yolo(annotations, f"{split}/a", "1 0.125 0.1667 0.375 0.1667 0.375 0.5 0.125 0.5")
    describe_yolo(annotations)
    return annotations


def test_normalized_polygons(yolo, convert, tmp_path):
    masks, _ = convert("yolo")
    assert names(tmp_path) == ["background", "cat", "dog"]
    assert set(masks) == {"train/a.png", "val/a.png"}
    np.testing.assert_array_equal(masks["val/a.png"], filled((2, 2, 6, 6, 2)))


@pytest.mark.parametrize("named", [{0: "cat", 1: "dog"}, {"1": "dog", "5": "cat"}])
def test_names_as_a_dictionary_and_the_yaml_file_as_source(yolo, convert, tmp_path, named):
    describe_yolo(yolo, names=named, path="/home/someone/elsewhere", train="../images/train", test="images/test")
    masks, printed = convert("yolo", yolo / "data.yaml")
    assert sorted(names(tmp_path)) == ["background", "cat", "dog"]
    np.testing.assert_array_equal(masks["train/a.png"] > 0, filled((2, 2, 6, 6, 1)) > 0)
    assert "there is no split test" in printed


def test_pictures_without_labels_and_labels_without_pictures(yolo, convert):
    save(yolo / "images/train/b.jpg", picture(seed=7))
    label_yolo(yolo, "train/b")
    save(yolo / "images/train/c.jpg", picture(seed=8))
    label_yolo(yolo, "train/lost", "0 0 0 1 0 1 1")
    masks, printed = convert("yolo")
    assert not masks["train/b.png"].any()
    assert not masks["train/c.png"].any()
    assert "2 images have no object" in printed
    assert "left out: 1 label files without a picture, the first is labels/train/lost.txt" in printed


def test_a_list_of_pictures(yolo, convert):
    (yolo / "train.txt").write_text("./images/train/a.jpg\n./images/train/gone.jpg\n")
    describe_yolo(yolo, train="train.txt")
    masks, printed = convert("yolo")
    assert set(masks) == {"train/a.png", "val/a.png"}
    assert "1 images that the annotations name and that are missing, the first is ./images/train/gone.jpg" in printed


def test_classes_txt_without_yaml(yolo, convert, tmp_path):
    (yolo / "data.yaml").unlink()
    (yolo / "classes.txt").write_text("cat\ndog\n")
    masks, _ = convert("yolo")
    assert set(masks) == {"train/a.png", "val/a.png"}
    assert names(tmp_path) == ["background", "cat", "dog"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "0 0.5 0.5 0.1 0.1",
            r"^labels/train/a\.txt: line 2 is a box, of 5 numbers, without a mask; must be a polygon",
        ),
        ("0 0.5 0.5 0.1 0.1 0.2 0.2 0.3", "line 2 has 8 numbers; must be class x y x y x y"),
        ("2 0 0 1 0 1 1", "line 2 has class 2; must be 0, 1 of `names`"),
        ("0 3 3 12 3 12 12", "line 2 holds 12; must be fractions of width and height"),
        ("0 a b", "line 2 is '0 a b'; must be numbers"),
    ],
)
def test_invalid_lines_end_in_one_line(yolo, convert, line, message):
    label_yolo(yolo, "train/a", "", line)
    with pytest.raises(DataError, match=message):
        convert("yolo")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"names": 3}, "names is 3; must be a list of names, or numbers with names"),
        ({"train": "nowhere"}, "train is nowhere, which does not exist"),
        ({"kpt_shape": [17, 3]}, "its labels are keypoints"),
        ({"names": [f"c{i}" for i in range(254)]}, "there are 255; must be 2 to 254"),
    ],
)
def test_invalid_descriptions_end_in_one_line(yolo, convert, more, message):
    describe_yolo(yolo, **more)
    with pytest.raises(DataError, match=message):
        convert("yolo")
