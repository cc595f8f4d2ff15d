"""Conversion of annotations that are not masks: COCO, LabelMe, YOLO, a mask for each class."""

import base64
import importlib.util
import io
import json
import os
import shlex

import numpy as np
import pytest
from made_folders import picture, save
from PIL import Image

from petseg.config import DataConfig, command_line
from petseg.data import check, picture_files
from petseg.data.check import CheckConfig, CheckOptions
from petseg.data.convert import __main__ as program, detection
from petseg.data.convert.__main__ import ConversionConfig
from petseg.data.folders import folder_layout
from petseg.errors import ConfigError, DataError

HEIGHT, WIDTH = 12, 16
SQUARE = [[2, 2], [6, 2], [6, 6], [2, 6]]  # rows and columns 2 to 5
EXIF = 0x0112


@pytest.fixture
def root(tmp_path):
    return tmp_path / "source"


@pytest.fixture
def convert(root, tmp_path, capsys):
    def convert_source(name, source=None, **options):
        """Masks by their paths below the written folder's masks/, and what was printed."""
        target = tmp_path / "made"
        program.main(ConversionConfig(from_=name, source=str(source or root), to=str(target), **options))
        masks = {
            file.relative_to(target / "masks").as_posix(): np.asarray(Image.open(file))
            for file in sorted((target / "masks").rglob("*.png"))
        }
        return masks, capsys.readouterr().out

    return convert_source


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


class TestCoco:
    def test_category_ids_with_gaps_become_classes_and_pictures_stay_the_same_bytes(self, root, convert, tmp_path):
        save(root / "a.jpg", picture())
        content = coco([polygon(SQUARE), polygon(box(8, 0, 16, 12), category_id=90)])
        write_json(root / "instances.json", content)
        masks, printed = convert("coco")
        assert names(tmp_path) == ["background", "cat", "traffic_light"]
        np.testing.assert_array_equal(masks["a.png"], filled((2, 2, 6, 6, 1), (0, 8, 12, 16, 2)))
        assert (tmp_path / "made/images/a.jpg").read_bytes() == (root / "a.jpg").read_bytes()
        assert "1 images, copied; 2 objects" in printed

    def test_polygons_are_drawn_as_pycocotools_draws_them(self, root, convert):
        from pycocotools import mask as coco_masks

        rng = np.random.default_rng(0)
        parts = [rng.uniform(-3, 19, (7, 2)).tolist(), rng.uniform(0, 12, (4, 2)).tolist()]
        save(root / "a.jpg", picture())
        write_json(root / "a.json", coco([polygon(*parts)]))
        masks, _ = convert("coco")
        expected = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects([flat(p) for p in parts], HEIGHT, WIDTH)))
        np.testing.assert_array_equal(masks["a.png"], expected)

    def test_several_parts_are_united_and_points_outside_are_cut(self, root, convert):
        save(root / "a.jpg", picture())
        write_json(root / "a.json", coco([polygon(SQUARE, box(-9, 8, 40, 30))]))
        masks, _ = convert("coco")
        np.testing.assert_array_equal(masks["a.png"], filled((2, 2, 6, 6, 1), (8, 0, 12, 16, 1)))

    def test_run_lengths_of_both_forms_and_their_holes(self, root, convert):
        from pycocotools import mask as coco_masks

        ring = filled((1, 1, 9, 9, 1), (3, 3, 6, 6, 0))
        runs, value, count = [], 0, 0
        for pixel in [*ring.ravel("F").tolist(), -1]:
            if pixel != value:
                runs.append(count)
                value, count = pixel, 0
            count += 1
        compressed = coco_masks.encode(np.asfortranarray(ring))["counts"].decode()
        save(root / "a.jpg", picture())
        save(root / "b.jpg", picture(seed=1))
        size = [HEIGHT, WIDTH]
        content = coco(
            [
                {"segmentation": {"size": size, "counts": runs}},
                {"segmentation": {"size": size, "counts": compressed}, "image_id": 1},
            ],
            files=("a.jpg", "b.jpg"),
        )
        write_json(root / "a.json", content)
        masks, _ = convert("coco")
        np.testing.assert_array_equal(masks["a.png"], ring)
        np.testing.assert_array_equal(masks["b.png"], ring)

    @pytest.mark.parametrize("counts", [[3, 4], "0000000000", "zz~~", "", "P", [5, -5, 192]])
    def test_run_lengths_that_do_not_fit_are_refused(self, root, convert, counts):
        save(root / "a.jpg", picture())
        write_json(root / "a.json", coco([{"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}}]))
        with pytest.raises(DataError, match=r"^a\.json: annotation 0: has a (compressed )?run-length encoding"):
            convert("coco")

    def test_crowds_are_ignored_and_the_smaller_object_is_on_top(self, root, convert):
        crowd = {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 12, 180]}, "iscrowd": 1}  # the first column
        save(root / "a.jpg", picture())
        small, large = polygon(SQUARE), polygon(box(1, 1, 11, 11), category_id=90)
        write_json(root / "a.json", coco([small, large, crowd]))
        masks, printed = convert("coco")
        expected = filled((1, 1, 11, 11, 2), (2, 2, 6, 6, 1), (0, 0, 12, 1, 255))
        np.testing.assert_array_equal(masks["a.png"], expected)
        assert "note: 16 pixels in 1 images are of objects of several classes; the smaller object is on top" in printed
        assert "note: 1 crowds and ignored areas have the value 255" in printed

    def test_faults_of_annotations_are_counted(self, root, convert):
        for file in ("a.jpg", "b.jpg"):
            save(root / file, picture())
        annotations = [
            polygon(SQUARE),
            {"bbox": [1, 2, 3, 4]},
            {"segmentation": []},
            polygon(SQUARE[:2]),
            polygon(SQUARE, image_id=77),
            polygon(box(20, 0, 30, 9)),
        ]
        write_json(root / "a.json", coco(annotations, files=("a.jpg", "b.jpg", "lost.jpg")))
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

    def test_categories_of_one_name_are_one_class(self, root, convert, tmp_path):
        save(root / "a.jpg", picture())
        content = coco([polygon(SQUARE), polygon(box(8, 8, 9, 9), category_id=9)], categories=((7, "cat"), (9, "cat")))
        write_json(root / "a.json", content)
        masks, printed = convert("coco")
        assert names(tmp_path) == ["background", "cat"]
        assert (masks["a.png"] == 1).sum() == 17
        assert "several categories are named cat" in printed

    def test_a_category_named_background_is_class_0(self, root, convert, tmp_path):
        save(root / "a.jpg", picture())
        both = [polygon(box(0, 0, 16, 12)), polygon(SQUARE, category_id=9)]
        write_json(root / "a.json", coco(both, categories=((9, "Background"), (7, "cat"))))
        masks, _ = convert("coco")
        assert names(tmp_path) == ["background", "cat"]
        np.testing.assert_array_equal(masks["a.png"], 1 - filled((2, 2, 6, 6, 1)))

    @pytest.mark.parametrize("layout", ["official", "roboflow"])
    def test_splits_of_usual_layouts(self, root, convert, layout):
        for split in ("train", "val"):
            folder = root / (f"{split}2017" if layout == "official" else split)
            file = root / f"annotations/instances_{split}2017.json"
            save(folder / "1.jpg", picture(seed=len(split)))
            write_json(
                file if layout == "official" else folder / "_annotations.coco.json",
                coco([polygon(SQUARE)], files=("1.jpg",)),
            )
        write_json(
            root / "annotations/person_keypoints_train2017.json" if layout == "official" else root / "info.json", {}
        )
        masks, printed = convert("coco")
        assert set(masks) == {"train/1.png", "val/1.png"}
        assert "train 1, val 1" in printed
        assert "--eval_split=val" in printed

    def test_one_file_name_in_several_folders(self, root, convert):
        for i, folder in enumerate(("left", "right")):
            save(root / folder / "1.jpg", picture(seed=i))
        content = coco([polygon(SQUARE), polygon(box(0, 0, 1, 1), image_id=1)], files=("left/1.jpg", "right\\1.jpg"))
        write_json(root / "a.json", content)
        masks, printed = convert("coco")
        assert {name: int(mask.sum()) for name, mask in masks.items()} == {"left_1.png": 16, "right_1.png": 1}
        assert "2 images are renamed" in printed
        write_json(root / "a.json", coco([polygon(SQUARE)], files=("1.jpg",)))
        with pytest.raises(ConfigError, match="must be a folder that does not exist, or is empty"):
            convert("coco")
        with pytest.raises(DataError, match=r"^1\.jpg: 2 pictures end so, left/1\.jpg, right/1\.jpg; must be the path"):
            program.main(ConversionConfig(from_="coco", source=str(root), to=str(root.parent / "other")))
        assert not (root.parent / "other").exists()

    @pytest.mark.parametrize(("height", "width", "turned"), [(HEIGHT, WIDTH, True), (WIDTH, HEIGHT, False)])
    def test_photographs_that_exif_turns(self, root, convert, height, width, turned):
        """The stated size tells whether a tool has turned the photograph; petseg turns it in any case."""
        save(root / "a.jpg", turned_picture(6))
        write_json(root / "a.json", coco([polygon(box(0, 0, 3, 2))], height=height, width=width))
        masks, printed = convert("coco")
        top_right = filled((0, 10, 3, 12, 1), size=(WIDTH, HEIGHT))  # turned clockwise
        np.testing.assert_array_equal(
            masks["a.png"], top_right if turned else filled((0, 0, 2, 3, 1), size=(WIDTH, HEIGHT))
        )
        assert ("1 images are annotated as stored" in printed) == turned

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_masks_lie_on_the_turned_picture(self, root, convert, tmp_path, orientation):
        white = np.zeros((16, 24, 3), np.uint8)
        white[0:8, 0:8] = 255
        image, exif = Image.fromarray(white), Image.Exif()
        exif[EXIF] = orientation
        for name in ("stored", "upright"):
            save(root / f"{name}.jpg", b"")
            image.save(root / f"{name}.jpg", exif=exif)
        upright = picture_files.read(root / "stored.jpg").upright().pixels[..., 0] > 127
        top, left = (int(places.min()) for places in np.nonzero(upright))
        boxes = [polygon(box(0, 0, 8, 8)), polygon(box(left, top, left + 8, top + 8), image_id=1)]
        content = coco(boxes, files=("stored.jpg", "upright.jpg"))
        for entry, size in zip(content["images"], ((16, 24), upright.shape), strict=True):
            entry["height"], entry["width"] = size
        write_json(root / "a.json", content)
        masks, _ = convert("coco")
        for name in ("stored", "upright") if orientation in (1, 5, 6, 7, 8) else ("upright",):
            np.testing.assert_array_equal(masks[f"{name}.png"], upright)

    def test_upside_down_photographs_are_annotated_as_people_see_them(self, root, convert):
        save(root / "a.jpg", turned_picture(3))
        write_json(root / "a.json", coco([polygon(SQUARE)]))
        masks, printed = convert("coco")
        np.testing.assert_array_equal(masks["a.png"], filled((2, 2, 6, 6, 1)))
        assert (
            "1 images are turned by EXIF to the same size; their annotations are taken to be of the turned" in printed
        )

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
        ],
    )
    def test_invalid_files_end_in_one_line(self, root, convert, tmp_path, content, message):
        save(root / "a.jpg", picture())
        write_json(root / "a.json", content)
        with pytest.raises(DataError, match=message):
            convert("coco")
        assert not (tmp_path / "made").exists()


def labelme(*shapes, **more):
    content = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": "a.jpg", "imageData": None}
    return {**content, "imageHeight": HEIGHT, "imageWidth": WIDTH, **more}


def shape(points, label="cat", kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


class TestLabelme:
    def test_every_type_of_shape(self, root, convert, tmp_path):
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
        save(root / "a.jpg", picture())
        write_json(root / "a.json", content)
        masks, printed = convert("labelme")
        assert names(tmp_path) == ["background", "box", "cat", "disc", "mask"]
        expected = filled((2, 2, 6, 6, 2), (1, 8, 3, 10, 1), (6, 11, 10, 13, 3), (7, 10, 9, 14, 3))
        expected[9:11, 2:4] = [[4, 0], [4, 4]]
        np.testing.assert_array_equal(masks["a.png"], expected)
        assert "left out: 1 shapes of type point, which have no area, the first is a.json: shape 4" in printed
        assert "left out: 1 shapes of type linestrip" in printed

    def test_paths_with_backslashes_embedded_pictures_and_pictures_beside(self, root, convert, tmp_path):
        save(root / "images/a.jpg", picture())
        save(root / "json/b.png", picture(seed=1))
        embedded = root.parent / "c.png"
        save(embedded, picture(seed=2))
        data = base64.b64encode(embedded.read_bytes()).decode()
        write_json(root / "json/a.json", labelme(shape(SQUARE), imagePath="..\\images\\a.jpg"))
        write_json(root / "json/b.json", labelme(shape(SQUARE), imagePath="D:\\old\\renamed.png"))
        write_json(root / "json/c.json", labelme(shape(SQUARE), imagePath="gone.png", imageData=data))
        write_json(root / "json/d.json", labelme(shape(SQUARE), imagePath="gone.png"))
        masks, printed = convert("labelme")
        assert set(masks) == {"a.png", "b.png", "c.png"}
        assert (tmp_path / "made/images/c.png").read_bytes() == embedded.read_bytes()
        assert "left out: 1 images that the annotations name and that are missing, the first is gone.png" in printed

    def test_labels_of_labelme_and_pictures_without_annotations(self, root, convert, tmp_path):
        for name in "abc":
            save(root / f"train/{name}.jpg", picture())
        (root / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
        shapes = shape(box(0, 0, 8, 8)), shape(box(2, 2, 4, 4), "_background_"), shape(box(5, 5, 7, 7), "__ignore__")
        write_json(root / "train/a.json", labelme(*shapes))
        write_json(root / "train/b.json", labelme(imagePath="b.jpg"))
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
    def test_invalid_files_end_in_one_line(self, root, convert, content, message):
        save(root / "a.jpg", picture())
        write_json(root / "a.json", content)
        with pytest.raises(DataError, match=message):
            convert("labelme")

    def test_an_embedded_picture_that_is_no_base64_ends_in_one_line(self, root, convert):
        write_json(root / "a.json", labelme(shape(SQUARE), imagePath="gone.png", imageData="\N{SNOWMAN}"))
        with pytest.raises(DataError, match=r"^a\.json: imageData is no base64; must be a file in base64, or null$"):
            convert("labelme")


class TestYolo:
    @pytest.fixture
    def yolo(self, root):
        for split in ("train", "val"):
            save(root / f"images/{split}/a.jpg", picture(seed=len(split)))
            self.label(root, f"{split}/a", "1 0.125 0.1667 0.375 0.1667 0.375 0.5 0.125 0.5")
        self.describe(root)
        return root

    def label(self, root, name, *lines):
        file = root / f"labels/{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")

    def describe(self, root, **more):
        content = {"path": ".", "train": "images/train", "val": "images/val", "names": ["cat", "dog"], **more}
        (root / "data.yaml").write_text(
            "# a data set\n" + "".join(f"{k}: {json.dumps(v)}\n" for k, v in content.items())
        )

    def test_normalized_polygons(self, yolo, convert, tmp_path):
        masks, _ = convert("yolo")
        assert names(tmp_path) == ["background", "cat", "dog"]
        assert set(masks) == {"train/a.png", "val/a.png"}
        np.testing.assert_array_equal(masks["val/a.png"], filled((2, 2, 6, 6, 2)))

    @pytest.mark.parametrize("named", [{0: "cat", 1: "dog"}, {"1": "dog", "5": "cat"}])
    def test_names_as_a_dictionary_and_the_yaml_file_as_source(self, yolo, convert, tmp_path, named):
        self.describe(yolo, names=named, path="/home/someone/elsewhere", train="../images/train", test="images/test")
        masks, printed = convert("yolo", yolo / "data.yaml")
        assert sorted(names(tmp_path)) == ["background", "cat", "dog"]
        np.testing.assert_array_equal(masks["train/a.png"] > 0, filled((2, 2, 6, 6, 1)) > 0)
        assert "there is no split test" in printed

    def test_pictures_without_labels_and_labels_without_pictures(self, yolo, convert):
        save(yolo / "images/train/b.jpg", picture(seed=7))
        self.label(yolo, "train/b")
        save(yolo / "images/train/c.jpg", picture(seed=8))
        self.label(yolo, "train/lost", "0 0 0 1 0 1 1")
        masks, printed = convert("yolo")
        assert not masks["train/b.png"].any()
        assert not masks["train/c.png"].any()
        assert "2 images have no object" in printed
        assert "left out: 1 label files without a picture, the first is labels/train/lost.txt" in printed

    def test_a_list_of_pictures(self, yolo, convert):
        (yolo / "train.txt").write_text("./images/train/a.jpg\n./images/train/gone.jpg\n")
        self.describe(yolo, train="train.txt")
        masks, printed = convert("yolo")
        assert set(masks) == {"train/a.png", "val/a.png"}
        assert (
            "1 images that the annotations name and that are missing, the first is ./images/train/gone.jpg" in printed
        )

    def test_classes_txt_without_yaml(self, yolo, convert, tmp_path):
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
            ("0 3 3 12 3 12 12", "line 2 holds 12; must be shares of width and height"),
            ("0 a b", "line 2 is '0 a b'; must be numbers"),
        ],
    )
    def test_invalid_lines_end_in_one_line(self, yolo, convert, line, message):
        self.label(yolo, "train/a", "", line)
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
    def test_invalid_descriptions_end_in_one_line(self, yolo, convert, more, message):
        self.describe(yolo, **more)
        with pytest.raises(DataError, match=message):
            convert("yolo")


class TestMasksPerClass:
    @pytest.mark.parametrize(
        ("image", "cat", "light"),
        [
            ("images/a_1.jpg", "masks/cat/a_1.png", "masks/traffic light/a_1.png"),
            ("images/a_1.jpg", "masks/a_1_cat.png", "masks/a_1_traffic light.png"),
            ("images/a_1.jpg", "masks/a_1/cat.png", "masks/a_1/traffic light.png"),
            ("a_1.jpg", "a_1_cat.png", "a_1-traffic light.png"),
        ],
    )
    def test_layouts(self, root, convert, tmp_path, image, cat, light):
        save(root / image, picture())
        save(root / cat, filled((2, 2, 6, 6, 255)))
        save(root / light, filled((0, 4, 12, 16, 1)))
        masks, printed = convert("masks_per_class")
        assert names(tmp_path) == ["background", "cat", "traffic_light"]
        np.testing.assert_array_equal(masks["a_1.png"], filled((0, 4, 12, 16, 2), (2, 2, 6, 6, 1)))
        assert "8 pixels in 1 images are of objects of several classes" in printed

    @pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (WIDTH, HEIGHT)])
    def test_masks_of_photographs_that_exif_turns(self, root, convert, size):
        save(root / "images/a.jpg", turned_picture(8))
        save(root / "masks/cat/a.png", filled((0, 0, 2, 3, 255), size=size))
        masks, _ = convert("masks_per_class")
        upright = filled((0, 0, 2, 3, 1), size=size)
        np.testing.assert_array_equal(masks["a.png"], np.rot90(upright) if size == (HEIGHT, WIDTH) else upright)

    def test_splits_longest_names_and_pictures_without_masks(self, root, convert):
        for name in ("train/a", "train/a_b", "test/a"):
            save(root / f"images/{name}.jpg", picture(seed=len(name)))
        save(root / "masks/train/a_b_cat.png", Image.fromarray(filled((2, 2, 6, 6, 1)).astype(bool)))
        save(root / "masks/test/a_cat.png", filled((1, 1, 2, 2, 255)))
        save(root / "masks/test/z_cat.png", filled((1, 1, 2, 2, 255)))
        masks, printed = convert("masks_per_class")
        assert {name: int(mask.sum()) for name, mask in masks.items()} == {
            "test/a.png": 1, "train/a.png": 0, "train/a_b.png": 16,
        }  # fmt: skip
        assert "1 images have no object" in printed
        assert "left out: 1 masks without a picture, the first is masks/test/z_cat.png" in printed

    def test_pictures_and_masks_of_whole_pictures_are_no_classes(self, root, convert, tmp_path):
        for name in ("a", "a_b"):
            save(root / f"images/{name}.jpg", picture())
        for name in ("a_b", "a_cat"):
            save(root / f"masks/{name}.png", filled((2, 2, 6, 6, 255)))
        masks, printed = convert("masks_per_class")
        assert names(tmp_path) == ["background", "cat"]
        assert "left out: 1 masks without a picture, the first is masks/a_b.png" in printed
        assert {name for name, mask in masks.items() if mask.any()} == {"a.png"}

    def test_photographs_in_the_folder_of_the_masks_are_no_masks(self, root, convert, tmp_path):
        for name in ("a.jpg", "a_1.jpg"):
            save(root / name, picture())
        save(root / "a_1_cat.png", filled((2, 2, 6, 6, 255)))
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
    def test_invalid_masks_end_in_one_line(self, root, convert, name, content, message):
        save(root / "images/a.jpg", picture())
        save(root / "masks" / name, content)
        with pytest.raises(DataError, match=message):
            convert("masks_per_class")


class TestProgram:
    @pytest.fixture
    def source(self, root):
        for i in range(6):
            save(root / f"train/{i}.jpg", picture(40, 48, seed=i))
            save(root / f"test/{i}.jpg", picture(40, 48, seed=10 + i))
        for split in ("train", "test"):
            files = [f"{i}.jpg" for i in range(6)]
            annotations = [polygon(box(3 + i, 3, 30, 33), image_id=i) for i in range(6)]
            write_json(root / split / "_annotations.coco.json", coco(annotations, files=files, height=40, width=48))
        return root

    def run(self, *arguments):
        program.main(command_line.parse(["convert", *map(str, arguments)], ConversionConfig))

    def test_the_documented_command_line_and_what_it_suggests(self, source, tmp_path, capsys):
        target = tmp_path / "made"
        self.run("--from=coco", source, "--to", target)
        suggested = capsys.readouterr().out.splitlines()[-2:]
        assert suggested[0] == f"  python -m petseg.data.check --dataset=folder --data_dir={target}"
        config = DataConfig(dataset="folder", data_dir=str(target))
        check.main(CheckConfig(config, CheckOptions(overlays=0)))
        assert capsys.readouterr().out.endswith("nothing is wrong\n")
        layout = folder_layout.scan_folder(config)
        assert {split: len(pairs) for split, pairs in layout.splits.items()} == {"train": 6, "test": 6}

    def test_links_share_the_file(self, source, tmp_path):
        self.run("--from=coco", source, f"--to={tmp_path / 'made'}", "--link")
        assert os.path.samefile(source / "train/0.jpg", tmp_path / "made/images/train/0.jpg")

    def test_folders_with_content_are_refused_and_a_killed_conversion_is_repeated(self, source, tmp_path):
        save(tmp_path / "made/.unfinished/images/x.jpg", b"of a process that was killed")
        self.run("--from=coco", source, f"--to={tmp_path / 'made'}")
        assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["classes.json", "images", "masks"]
        with pytest.raises(ConfigError, match=r"--to=.*/made: must be a folder that does not exist, or is empty"):
            self.run("--from=coco", source, f"--to={tmp_path / 'made'}")

    def test_invalid_flags(self, source, tmp_path):
        with pytest.raises(ConfigError, match=r"^--from=: must be one of coco, .*; .*/source looks like coco$"):
            self.run(source, "--to=x")
        with pytest.raises(ConfigError, match="nowhere: does not exist"):
            self.run("--from=coco", "nowhere", "--to=x")
        with pytest.raises(ConfigError, match=r"--mask_dir=.*: must be empty without --from=masks_per_class"):
            self.run("--from=coco", source, "--to=x", f"--mask_dir={tmp_path}")
        with pytest.raises(Exception, match="more: every argument other than one SOURCE is a flag"):
            self.run("--from=coco", source, "more", "--to=x")

    @pytest.mark.parametrize(("name", "package"), [("coco", "pycocotools"), ("yolo", "yaml")])
    def test_a_missing_package_is_named_with_its_extra(self, source, monkeypatch, name, package):
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda each: None if each == package else find(each))
        with pytest.raises(
            ConfigError, match=rf"--from={name}: needs the package {package}: pip install 'petseg\[convert\]'"
        ):
            self.run(f"--from={name}", source, "--to=x")

    @pytest.mark.parametrize(
        "layout",
        [
            ["images/a.jpg", "masks/cat/a.png"],
            ["images/a.jpg", "masks/a_cat.png", "masks/a_dog.png"],
            ["images/train/a.jpg", "masks/train/cat/a.png", "masks/train/dog/a.png"],
        ],
    )
    def test_a_folder_with_a_mask_for_each_class_names_the_command(self, root, layout):
        for file in layout:
            save(root / file, filled((0, 0, 5, 5, 255)))
        try:
            found = folder_layout.scan_folder(DataConfig(dataset="folder", data_dir=str(root)))
            message = str(found.faults[0])
        except DataError as error:
            message = str(error)
        command = shlex.split(message.partition(": python -m ")[2])
        assert command == ["petseg.data.convert", "--from=masks_per_class", str(root), f"--to={root}-masks"]

    @pytest.mark.parametrize("name", ["coco", "labelme", "yolo"])
    def test_a_folder_with_annotations_names_the_command(self, root, tmp_path, name):
        save(root / "images/a.jpg", picture())
        if name == "coco":
            write_json(root / "annotations/instances.json", coco([polygon(SQUARE)]))
        elif name == "labelme":
            write_json(root / "images/a.json", labelme(shape(SQUARE), imageData="A" * 200000))
        else:
            TestYolo().describe(root)
        assert detection.detected_format(root) == name
        with pytest.raises(DataError) as error:
            folder_layout.scan_folder(DataConfig(dataset="folder", data_dir=str(root)))
        command = shlex.split(str(error.value).partition(": python -m ")[2])
        assert command == ["petseg.data.convert", f"--from={name}", str(root), f"--to={root}-masks"]
        if name != "yolo":
            self.run(*command[1:])
            assert (tmp_path / "source-masks/masks/a.png").is_file()
