"""Conversion of LabelMe's annotations."""

import base64
import io

import numpy as np
import pytest
from made_annotations import SQUARE, box, filled, labelme, names, shape, write_json
from made_folders import picture, save
from PIL import Image

from petseg.errors import DataError


def test_every_type_of_shape(annotations, convert, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.array([[1, 0], [1, 1]], bool)).save(buffer, "PNG")
    mask = base64.b64encode(buffer.getvalue()).decode()
    content = labelme(
        shape(SQUARE),
        shape([[10, 3], [8, 1]], "box", "rectangle"),  # from the lower right corner
        shape([[12, 8], [14, 8]], "disc", "circle"),
        shape([[2, 9], [3, 10]], "mask", "mask", mask=mask),
        shape([[0, 0]], "dot", "point"),
        shape([[0, 0], [3, 3]], "rope", "linestrip"),
    )
    save(annotations / "a.jpg", picture())
    write_json(annotations / "a.json", content)
    masks, printed = convert("labelme")
    assert names(tmp_path) == ["background", "box", "cat", "disc", "mask"]
    expected = filled((2, 2, 6, 6, 2), (1, 8, 3, 10, 1), (6, 11, 10, 13, 3), (7, 10, 9, 14, 3))
    expected[9:11, 2:4] = [[4, 0], [4, 4]]
    np.testing.assert_array_equal(masks["a.png"], expected)
    assert "left out: 1 shapes of type point, which have no area, the first is a.json: shape 4" in printed
    assert "left out: 1 shapes of type linestrip" in printed


def test_paths_with_backslashes_embedded_pictures_and_pictures_beside(annotations, convert, tmp_path):
    save(annotations / "images/a.jpg", picture())
    save(annotations / "json/b.png", picture(seed=1))
    embedded = annotations.parent / "c.png"
    save(embedded, picture(seed=2))
    data = base64.b64encode(embedded.read_bytes()).decode()
    write_json(annotations / "json/a.json", labelme(shape(SQUARE), imagePath="..\\images\\a.jpg"))
    write_json(annotations / "json/b.json", labelme(shape(SQUARE), imagePath="D:\\old\\renamed.png"))
    write_json(annotations / "json/c.json", labelme(shape(SQUARE), imagePath="gone.png", imageData=data))
    write_json(annotations / "json/d.json", labelme(shape(SQUARE), imagePath="gone.png"))
    masks, printed = convert("labelme")
    assert set(masks) == {"a.png", "b.png", "c.png"}
    assert (tmp_path / "made/images/c.png").read_bytes() == embedded.read_bytes()
    assert "left out: 1 images that the annotations name and that are missing, the first is gone.png" in printed


def test_labels_of_labelme_and_pictures_without_annotations(annotations, convert, tmp_path):
    for name in "abc":
        save(annotations / f"train/{name}.jpg", picture())
    (annotations / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    shapes = shape(box(0, 0, 8, 8)), shape(box(2, 2, 4, 4), "_background_"), shape(box(5, 5, 7, 7), "__ignore__")
    write_json(annotations / "train/a.json", labelme(*shapes))
    write_json(annotations / "train/b.json", labelme(imagePath="b.jpg"))
    masks, printed = convert("labelme")
    assert names(tmp_path) == ["background", "dog", "cat"]
    expected = filled((0, 0, 8, 8, 2), (2, 2, 4, 4, 0), (5, 5, 7, 7, 255))
    np.testing.assert_array_equal(masks["train/a.png"], expected)
    assert set(masks) == {"train/a.png", "train/b.png"}
    assert "1 images have no object and are background alone" in printed
    assert "left out: 1 pictures without a JSON file, the first is train/c.jpg" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            labelme(shape(SQUARE, kind="star")),
            r"^a\.json: shape 0 has type 'star' and 4 points; must be a shape that",
        ),
        (labelme({"points": 3}), "shape 0 cannot be read"),
        (labelme(shape(SQUARE), imageHeight=float("inf")), r"a\.json: states height inf and width .*; must be"),
        (labelme(shape(SQUARE, label="")), "a class is named ''"),
        (labelme(shape(SQUARE), imageHeight=99), "annotated as 99 x 16"),
        ({"shapes": 3}, "1 JSON files, none is LabelMe's"),
    ],
)
def test_invalid_files_end_in_one_line(annotations, convert, content, message):
    save(annotations / "a.jpg", picture())
    write_json(annotations / "a.json", content)
    with pytest.raises(DataError, match=message):
        convert("labelme")


def test_an_embedded_picture_that_is_no_base64_ends_in_one_line(annotations, convert):
    write_json(annotations / "a.json", labelme(shape(SQUARE), imagePath="gone.png", imageData="\N{SNOWMAN}"))
    with pytest.raises(DataError, match=r"^a\.json: imageData is no base64; must be a file in base64, or null$"):
        convert("labelme")
