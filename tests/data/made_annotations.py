"""Annotations that are not masks, as files for tests of their conversion; a converted folder's classes."""

import io
import json

import numpy as np
from made_folders import SIZE, picture
from PIL import Image

HEIGHT, WIDTH = SIZE
SQUARE = [[2, 2], [6, 2], [6, 6], [2, 6]]  # rows and columns 2 to 5
EXIF = 0x0112


def names(tmp_path):
    content = json.loads((tmp_path / "made/classes.json").read_text())
    assert content["ignored"] == [255]
    assert [each["value"] for each in content["classes"]] == list(range(len(content["classes"])))
    return [each["name"] for each in content["classes"]]


def filled(*boxes, size=(HEIGHT, WIDTH)):
    """Class ids with boxes: top, left, bottom, right, class id."""
    expected = np.zeros(size, np.uint8)
    for top, left, bottom, right, number in boxes:
        expected[top:bottom, left:right] = number
    return expected


def flat(points):
    return [float(value) for point in points for value in point]


def box(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco(annotations, *, files=("a.jpg",), categories=((7, "cat"), (90, "traffic light")), **sizes):
    return {
        "images": [
            {"id": i, "file_name": file, "height": HEIGHT, "width": WIDTH, **sizes} for i, file in enumerate(files)
        ],
        "annotations": [{"id": i, "image_id": 0, "category_id": 7, **each} for i, each in enumerate(annotations)],
        "categories": [{"id": i, "name": name} for i, name in categories],
    }


def polygon(*parts, **more):
    return {"segmentation": [flat(part) for part in parts], **more}


def turned_picture(orientation, size=(HEIGHT, WIDTH)):
    """A JPEG file whose EXIF data turn it."""
    image, exif = Image.fromarray(picture(*size)), Image.Exif()
    exif[EXIF] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def labelme(*shapes, **more):
    content = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": "a.jpg", "imageData": None}
    return {**content, "imageHeight": HEIGHT, "imageWidth": WIDTH, **more}


def shape(points, label="cat", kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def label_yolo(root, name, *lines):
    file = root / f"labels/{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def describe_yolo(root, **more):
    content = {"path": ".", "train": "images/train", "val": "images/val", "names": ["cat", "dog"], **more}
    (root / "data.yaml").write_text("# a data set\n" + "".join(f"{k}: {json.dumps(v)}\n" for k, v in content.items()))
