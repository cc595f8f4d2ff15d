"""Conversion of COCO's instance annotations."""

import numpy as np
import pytest
from made_annotations import (
    EXIF,
    HEIGHT,
    SQUARE,
    WIDTH,
    box,
    coco,
    filled,
    flat,
    names,
    polygon,
    turned_picture,
    write_json,
)
from made_folders import picture, save
from PIL import Image

from petseg.data import picture_files
from petseg.data.convert import __main__ as program
from petseg.data.convert.__main__ import ConversionConfig
from petseg.errors import ConfigError, DataError


def test_category_ids_with_gaps_become_classes_and_pictures_stay_the_same_bytes(annotations, convert, tmp_path):
    save(annotations / "a.jpg", picture())
    content = coco([polygon(SQUARE), polygon(box(8, 0, 16, 12), category_id=90)])
    write_json(annotations / "instances.json", content)
    masks, printed = convert("coco")
    assert names(tmp_path) == ["background", "cat", "traffic_light"]
    np.testing.assert_array_equal(masks["a.png"], filled((2, 2, 6, 6, 1), (0, 8, 12, 16, 2)))
    assert (tmp_path / "made/images/a.jpg").read_bytes() == (annotations / "a.jpg").read_bytes()
    assert "1 images, copied; 2 objects" in printed


def test_polygons_are_drawn_as_pycocotools_draws_them(annotations, convert):
    from pycocotools import mask as coco_masks

    rng = np.random.default_rng(0)
    parts = [rng.uniform(-3, 19, (7, 2)).tolist(), rng.uniform(0, 12, (4, 2)).tolist()]
    save(annotations / "a.jpg", picture())
    write_json(annotations / "a.json", coco([polygon(*parts)]))
    masks, _ = convert("coco")
    expected = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects([flat(p) for p in parts], HEIGHT, WIDTH)))
    np.testing.assert_array_equal(masks["a.png"], expected)


def test_several_parts_are_united_and_points_outside_are_cut(annotations, convert):
    save(annotations / "a.jpg", picture())
    write_json(annotations / "a.json", coco([polygon(SQUARE, box(-9, 8, 40, 30))]))
    masks, _ = convert("coco")
    np.testing.assert_array_equal(masks["a.png"], filled((2, 2, 6, 6, 1), (8, 0, 12, 16, 1)))


def test_run_lengths_of_both_forms_and_their_holes(annotations, convert):
    from pycocotools import mask as coco_masks

    ring = filled((1, 1, 9, 9, 1), (3, 3, 6, 6, 0))
    runs, value, count = [], 0, 0
    for pixel in [*ring.ravel("F").tolist(), -1]:
        if pixel != value:
            runs.append(count)
            value, count = pixel, 0
        count += 1
    compressed = coco_masks.encode(np.asfortranarray(ring))["counts"].decode()
    save(annotations / "a.jpg", picture())
    save(annotations / "b.jpg", picture(seed=1))
    size = [HEIGHT, WIDTH]
    content = coco(
        [
            {"segmentation": {"size": size, "counts": runs}},
            {"segmentation": {"size": size, "counts": compressed}, "image_id": 1},
        ],
        files=("a.jpg", "b.jpg"),
    )
    write_json(annotations / "a.json", content)
    masks, _ = convert("coco")
    np.testing.assert_array_equal(masks["a.png"], ring)
    np.testing.assert_array_equal(masks["b.png"], ring)


@pytest.mark.parametrize("counts", [[3, 4], "0000000000", "zz~~", "", "P", [5, -5, 192]])
def test_run_lengths_that_do_not_fit_are_refused(annotations, convert, counts):
    save(annotations / "a.jpg", picture())
    write_json(annotations / "a.json", coco([{"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}}]))
    with pytest.raises(DataError, match=r"^a\.json: annotation 0: has a (compressed )?run-length encoding"):
        convert("coco")


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_crowds_are_ignored_and_the_smaller_object_is_on_top(annotations, convert, key):
    crowd = {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 12, 180]}, key: 1}  # the first column
    save(annotations / "a.jpg", picture())
    small, large = polygon(SQUARE), polygon(box(1, 1, 11, 11), category_id=90)
    write_json(annotations / "a.json", coco([small, large, crowd]))
    masks, printed = convert("coco")
    expected = filled((1, 1, 11, 11, 2), (2, 2, 6, 6, 1), (0, 0, 12, 1, 255))
    np.testing.assert_array_equal(masks["a.png"], expected)
    assert "note: 16 pixels in 1 images are of objects of several classes; the smaller object is on top" in printed
    assert "note: 1 crowds and ignored areas have the value 255" in printed


def test_faults_of_annotations_are_counted(annotations, convert):
    for file in ("a.jpg", "b.jpg"):
        save(annotations / file, picture())
    objects = [
        polygon(SQUARE),
        {"bbox": [1, 2, 3, 4]},
        {"segmentation": []},
        polygon(SQUARE[:2]),
        polygon(SQUARE, image_id=77),
        polygon(box(20, 0, 30, 9)),
    ]
    write_json(annotations / "a.json", coco(objects, files=("a.jpg", "b.jpg", "lost.jpg")))
    masks, printed = convert("coco")
    assert set(masks) == {"a.png", "b.png"}
    assert not masks["b.png"].any()
    for line in (
        "left out: 1 images that the annotations name and that are missing, the first is lost.jpg",
        "left out: 2 annotations without a segmentation, boxes for example, the first is a.json: annotation 1",
        "left out: 1 polygons of fewer than three points, the first is a.json: annotation 3",
        "left out: 1 annotations of images that the file does not list",
        "1 images have no object and are background alone",
        "1 objects cover no pixel of their image",
    ):
        assert f"note: {line}" in printed


def test_categories_of_one_name_are_one_class(annotations, convert, tmp_path):
    save(annotations / "a.jpg", picture())
    content = coco([polygon(SQUARE), polygon(box(8, 8, 9, 9), category_id=9)], categories=((7, "cat"), (9, "cat")))
    write_json(annotations / "a.json", content)
    masks, printed = convert("coco")
    assert names(tmp_path) == ["background", "cat"]
    assert (masks["a.png"] == 1).sum() == 17
    assert "several categories are named cat" in printed


def test_a_category_named_background_is_class_0(annotations, convert, tmp_path):
    save(annotations / "a.jpg", picture())
    both = [polygon(box(0, 0, 16, 12)), polygon(SQUARE, category_id=9)]
    write_json(annotations / "a.json", coco(both, categories=((9, "Background"), (7, "cat"))))
    masks, _ = convert("coco")
    assert names(tmp_path) == ["background", "cat"]
    np.testing.assert_array_equal(masks["a.png"], 1 - filled((2, 2, 6, 6, 1)))


@pytest.mark.parametrize("layout", ["official", "roboflow"])
def test_splits_of_usual_layouts(annotations, convert, layout):
    for split in ("train", "val"):
        folder = annotations / (f"{split}2017" if layout == "official" else split)
        file = annotations / f"annotations/instances_{split}2017.json"
        save(folder / "1.jpg", picture(seed=len(split)))
        write_json(
            file if layout == "official" else folder / "_annotations.coco.json",
            coco([polygon(SQUARE)], files=("1.jpg",)),
        )
    write_json(
        annotations / "annotations/person_keypoints_train2017.json"
        if layout == "official"
        else annotations / "info.json",
        {},
    )
    masks, printed = convert("coco")
    assert set(masks) == {"train/1.png", "val/1.png"}
    assert "train 1, val 1" in printed
    assert "--eval_split=val" in printed


def test_one_file_name_in_several_folders(annotations, convert):
    for i, folder in enumerate(("left", "right")):
        save(annotations / folder / "1.jpg", picture(seed=i))
    content = coco([polygon(SQUARE), polygon(box(0, 0, 1, 1), image_id=1)], files=("left/1.jpg", "right\\1.jpg"))
    write_json(annotations / "a.json", content)
    masks, printed = convert("coco")
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"left_1.png": 16, "right_1.png": 1}
    assert "2 images are renamed" in printed
    write_json(annotations / "a.json", coco([polygon(SQUARE)], files=("1.jpg",)))
    with pytest.raises(ConfigError, match="must be a folder that does not exist, or is empty"):
        convert("coco")
    with pytest.raises(DataError, match=r"^1\.jpg: 2 pictures match, left/1\.jpg, right/1\.jpg; must be the path"):
        program.main(ConversionConfig(from_="coco", source=str(annotations), to=str(annotations.parent / "other")))
    assert not (annotations.parent / "other").exists()


@pytest.mark.parametrize(("height", "width", "turned"), [(HEIGHT, WIDTH, True), (WIDTH, HEIGHT, False)])
def test_photographs_that_exif_turns(annotations, convert, height, width, turned):
    """The stated size tells whether a tool has turned the photograph; petseg turns it in any case."""
    save(annotations / "a.jpg", turned_picture(6))
    write_json(annotations / "a.json", coco([polygon(box(0, 0, 3, 2))], height=height, width=width))
    masks, printed = convert("coco")
    top_right = filled((0, 10, 3, 12, 1), size=(WIDTH, HEIGHT))  # turned clockwise
    np.testing.assert_array_equal(
        masks["a.png"], top_right if turned else filled((0, 0, 2, 3, 1), size=(WIDTH, HEIGHT))
    )
    assert ("1 images are annotated as stored" in printed) == turned


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_lie_on_the_turned_picture(annotations, convert, tmp_path, orientation):
    white = np.zeros((16, 24, 3), np.uint8)
    white[0:8, 0:8] = 255
    image, exif = Image.fromarray(white), Image.Exif()
    exif[EXIF] = orientation
    for name in ("stored", "upright"):
        save(annotations / f"{name}.jpg", b"")
        image.save(annotations / f"{name}.jpg", exif=exif)
    upright = picture_files.read(annotations / "stored.jpg").upright().pixels[..., 0] > 127
    top, left = (int(places.min()) for places in np.nonzero(upright))
    boxes = [polygon(box(0, 0, 8, 8)), polygon(box(left, top, left + 8, top + 8), image_id=1)]
    content = coco(boxes, files=("stored.jpg", "upright.jpg"))
    for entry, size in zip(content["images"], ((16, 24), upright.shape), strict=True):
        entry["height"], entry["width"] = size
    write_json(annotations / "a.json", content)
    masks, _ = convert("coco")
    for name in ("stored", "upright") if orientation in (1, 5, 6, 7, 8) else ("upright",):
        np.testing.assert_array_equal(masks[f"{name}.png"], upright)


def test_upside_down_photographs_are_annotated_as_people_see_them(annotations, convert):
    save(annotations / "a.jpg", turned_picture(3))
    write_json(annotations / "a.json", coco([polygon(SQUARE)]))
    masks, printed = convert("coco")
    np.testing.assert_array_equal(masks["a.png"], filled((2, 2, 6, 6, 1)))
    assert "1 images are turned by EXIF to the same size; their annotations are taken to be of the turned" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            coco([polygon(SQUARE)], height=99),
            r"^a\.jpg: is 12 x 16 \(height x width\), and annotated as 99 x 16; must",
        ),
        (coco([polygon(SQUARE, category_id=3)]), "annotation 0 has category_id 3, which no category has"),
        (coco([{"segmentation": [[1, "x", 2, 3, 4, 5]]}]), "annotation 0 has a segmentation that is neither"),
        (
            coco([polygon([[1, 1], [1e9, 1], [1, 5]])]),
            r"annotation 0: has a point at 1e\+09, 1; the image is 16 x 12",
        ),
        (coco([polygon([[1, 1], [float("nan"), 1], [1, 5]])]), "annotation 0: has a point at nan, 1"),
        (coco([{"segmentation": {"size": [3, 3], "counts": [9]}}]), "has a mask of 3 x 3, in an image of 12 x 16"),
        (coco([{"bbox": [1, 2, 3, 4]}]), "no image has an object with a mask; left out: 1 annotations without"),
        (
            coco([polygon(SQUARE)], files=("b.jpg",)),
            "none of its images exists; left out: 1 images that .* b.jpg; --im",
        ),
        (
            coco([polygon(SQUARE)], categories=((7, "cat"), (8, "Cat"))),
            "the classes 'cat' and 'Cat' differ too little",
        ),
        (coco([polygon(SQUARE)], categories=((7, "?"),)), r"a class is named '\?'; must have letters or digits"),
        (coco([polygon(SQUARE)], categories=[(i, f"c{i}") for i in range(254)]), "there are 255; must be 2 to 254"),
        ({**coco([]), "annotations": [{"segments_info": [], "image_id": 0}]}, "these are panoptic annotations"),
        ({**coco([]), "images": [{"id": 1}]}, r"images\[0\] has no file_name; must have id, file_name"),
        ({"images": 1}, "1 JSON files, none of COCO's form"),
        (
            coco([{**polygon(SQUARE), "iscrowd": 1}]),
            "iscrowd or ignore is 1 for all 1 objects, .* it must be 0 for single obj",
        ),
        (coco([polygon([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]])]), "all its polygons lie between 0 and 1, as shares"),
        (coco([polygon(SQUARE)], categories=((7, "cat"), (7, "dog"))), "2 categories have the id 7; each must have"),
        ({**coco([]), "images": [{"id": 1, "file_name": "a.jpg"}] * 2}, "2 images have the id 1; each must have its"),
    ],
)
def test_invalid_files_end_in_one_line(annotations, convert, tmp_path, content, message):
    save(annotations / "a.jpg", picture())
    write_json(annotations / "a.json", content)
    with pytest.raises(DataError, match=message):
        convert("coco")
    assert not (tmp_path / "made").exists()
