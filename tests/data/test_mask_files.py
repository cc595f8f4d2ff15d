"""Mask files of every kind: class ids, or an error with the remedy."""

import functools
import io

import made_files
import numpy as np
import pytest
from made_files import npy
from PIL import Image

from petseg.classes import Classes
from petseg.data import mask_files
from petseg.data.folders import pair_files
from petseg.data.folders.mask_values import MaskCoding
from petseg.errors import DataError

NAMES = Classes.from_dict(["a", "b", "c"])
DEEP = Classes.from_dict([{"name": name, "value": 300 * i} for i, name in enumerate("abc")])
COLORED = Classes.from_dict([{"name": "a", "value": [0, 0, 0]}, {"name": "b", "value": [[9, 0, 0], [0, 9, 0]]}])
COLORS = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0]], np.uint8)
IDS = np.zeros((16, 16), np.uint8)
IDS[3:9, 2:9], IDS[9:14, 6:15] = 1, 2


def pillow(array, kind="PNG", mode=None, palette=None, **options):
    data, picture = io.BytesIO(), Image.fromarray(array)
    if palette is not None:
        picture.putpalette(palette.tobytes())
    (picture.convert(mode) if mode else picture).save(data, kind, **options)
    return data.getvalue()


tiff = functools.partial(made_files.tiff, photometric="minisblack")


def ids(data, classes):
    return mask_files.ids_of(mask_files.decode(data, classes.colored), MaskCoding(classes))


@pytest.mark.parametrize(
    ("data", "classes"),
    [
        (pillow(IDS), NAMES),
        (pillow(IDS, palette=COLORS), NAMES),
        (pillow(IDS, mode="LA"), NAMES),
        (pillow(IDS, mode="RGB"), NAMES),
        (pillow(IDS, "WEBP", lossless=True), NAMES),
        (pillow(IDS * np.uint16(300)), DEEP),
        (pillow(IDS.astype(np.int32), "TIFF"), NAMES),
        (tiff(IDS.astype(np.int32)), NAMES),
        (tiff(IDS * np.uint32(300)), DEEP),
        (tiff(IDS * np.float32(300)), DEEP),
        (tiff(IDS.astype(np.uint16)[..., None].repeat(3, -1), photometric="rgb"), NAMES),
        (npy(IDS.astype(np.int64)), NAMES),
        (npy(IDS[..., None].astype(np.float64)), NAMES),
    ],
)
def test_whole_numbers_in_any_file_are_class_ids(data, classes):
    np.testing.assert_array_equal(ids(data, classes), IDS)


@pytest.mark.parametrize(
    "data",
    [
        pillow(COLORS[IDS]),
        pillow(COLORS[IDS], mode="RGBA"),
        pillow(IDS, palette=COLORS),
        tiff(COLORS[IDS], photometric="rgb"),
    ],
)
def test_colours_in_any_file_are_class_ids(data):
    np.testing.assert_array_equal(ids(data, COLORED), IDS > 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(IDS / np.float32(2)), r"not whole \(0.5 at row 3, column 2\).*of probabilities, the class: array > 0.5"),
        (npy(IDS.astype(np.int32) - 1), "values from -1 to 1; must be 0 to 65535; pixels in no class must be 255"),
        (npy(IDS.astype(np.int32) * 40000), "values from 0 to 80000; must be 0 to 65535"),
        (npy(np.eye(3)[IDS]), "holds colours"),
        (npy(np.eye(5)[IDS]), r"has 5 channels; .*if each channel is a class: np.argmax\(array, -1\)"),
        (tiff(np.stack([IDS] * 3)), "holds 3 pages; must hold one, or --pages=examples"),
        (pillow(IDS, "JPEG"), "is a mask in JPEG, which changes values at every edge; must be a PNG"),
        (pillow(IDS, "WEBP"), "is a mask in WEBP, which changes values"),
        (pillow(IDS, "JPEG2000", irreversible=True), "is a mask in JPEG 2000, which changes values"),
        (pillow(IDS, "TIFF", compression="jpeg"), "is a mask in TIFF compressed as JPEG, which changes values"),
        (pillow(COLORS[IDS], "TIFF", compression="jpeg"), "is a mask in TIFF compressed as JPEG, which changes"),
        (pillow(COLORS[IDS], "DDS", pixel_format="DXT1"), "is a mask in DDS, which changes values"),
        (b"nothing", "cannot be read: 7 bytes of no known format"),
    ],
)
def test_other_files_are_refused_in_one_line_with_the_remedy(data, message):
    with pytest.raises(DataError, match=message) as caught:
        ids(data, NAMES)
    assert "\n" not in str(caught.value)


def test_values_in_no_class_that_interpolation_made_are_called_so():
    data = pillow(np.asarray(Image.fromarray(IDS * np.uint8(100)).resize((40, 40), Image.Resampling.BILINEAR)))
    hundreds = Classes.from_dict([{"name": name, "value": 100 * i} for i, name in enumerate("abc")])
    with pytest.raises(DataError, match=r"more in no class .*; these are values as interpolation makes them"):
        ids(data, hundreds)


def test_three_numbers_that_were_meant_as_values_are_explained():
    with pytest.raises(DataError, match=r"colour 2,2,2 .*in no class.*\[1, 2, 3\] is a colour unless another"):
        ids(pillow(IDS), COLORED)


def test_a_file_is_read_by_its_path_and_named_in_errors(tmp_path):
    (tmp_path / "a.png").write_bytes(pillow(IDS))
    np.testing.assert_array_equal(mask_files.read(tmp_path / "a.png", NAMES), IDS)
    for name, message in (("a.png", "holds colour"), ("b.png", "No such file"), (".", "is a folder")):
        with pytest.raises(DataError, match=f"^{tmp_path / name}: .*{message}"):
            mask_files.read(tmp_path / name, COLORED)


def test_a_mask_is_turned_as_its_own_exif_orientation_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(ids(pillow(IDS, exif=exif), NAMES), np.rot90(IDS, -1))


@pytest.mark.parametrize(("orientation", "noted"), [(1, False), (3, True), (6, True)])
def test_square_photographs_that_exif_turns_are_noted(orientation, noted):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = pillow(COLORS[IDS], exif=exif)
    pair = pair_files.decode_pair("a.png", image, "b.png", pillow(IDS), MaskCoding(NAMES))
    assert (not pair.faults, pair.either_way) == (True, noted)
