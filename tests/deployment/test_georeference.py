"""Masks of pictures with a georeference: GeoTIFF tags, world files and projection files."""

import logging

import numpy as np
import pytest
import tifffile
from PIL import Image

from petseg.classes import PETS, Classes
from petseg.deployment.output_files import Outputs
from petseg.deployment.photograph_files import Plan
from petseg.deployment.segmentation import Segmentation
from petseg.errors import WorkDirectoryError

SIZE = (6, 9)
TAGS = {
    33550: ("d", (0.5, 0.5, 0.0)),
    33922: ("d", (0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0)),
    34735: ("H", (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633)),
    34737: ("s", "WGS 84 / UTM zone 33N|"),
}
WORLD = b"0.5\n0\n0\n-0.5\n500000.25\n4599999.75\n"
AUXILIARY = b"<PAMDataset><SRS>EPSG:32633</SRS><PAMRasterBand><Metadata>mean</Metadata></PAMRasterBand></PAMDataset>"


def save_geotiff(file, pixels, **more):
    tags = [(code, kind, len(value), value, True) for code, (kind, value) in TAGS.items()]
    tifffile.imwrite(file, pixels, extratags=tags, metadata=None, **more)


def predict(pattern, output_dir, classes=PETS, **options):
    """Writes masks without a network, all pixels of which are of class 1."""
    probabilities = np.zeros((*SIZE, len(classes)), np.float32)
    probabilities[..., 1] = 1
    found = Segmentation(np.zeros((*SIZE, 3), np.uint8), probabilities, classes)
    plan = Plan.make(str(pattern), str(output_dir), Outputs(classes, **options))
    return [plan.write(photograph, found) for photograph in plan.photographs]


def geo_tags(file):
    with tifffile.TiffFile(file) as tiff:
        return {code: tiff.pages.first.tags[code].value for code in TAGS if code in tiff.pages.first.tags}


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_the_mask_of_a_geotiff_is_a_geotiff(bands, tmp_path):
    for name in ("field.tif", "FIELD2.TIFF"):
        save_geotiff(tmp_path / name, np.zeros((*SIZE, bands), np.uint16), photometric="minisblack")
    masks = predict(tmp_path, tmp_path / "out", probabilities="png")
    assert [mask.name for mask in masks] == ["FIELD2.mask.tif", "field.mask.tif"]
    for file in (masks[1], *(tmp_path / "out").glob("field.probability.*.tif")):
        assert geo_tags(file) == {code: value for code, (_, value) in TAGS.items()}
    with Image.open(masks[1]) as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), np.ones(SIZE, np.uint8))
        np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), PETS.palette[np.ones(SIZE, int)])
    probability = tifffile.imread(tmp_path / "out" / f"field.probability.{PETS.names[1]}.tif")
    np.testing.assert_array_equal(probability, np.full(SIZE, 255, np.uint8))
    assert predict(tmp_path, tmp_path / "out", probabilities="png") == masks  # own files are replaced
    assert len(predict(tmp_path / "*", tmp_path)) == 2
    assert len(predict(tmp_path / "*.*", tmp_path)) == 2  # masks are no photographs


@pytest.mark.parametrize("value", [300, (1, 2, 3)])
def test_masks_in_the_values_of_the_data_set_are_geotiffs_too(value, tmp_path):
    other = 7 if isinstance(value, int) else (9, 9, 9)
    classes = Classes.from_dict([{"name": "a", "value": other}, {"name": "b", "value": value}])
    save_geotiff(tmp_path / "field.tif", np.zeros(SIZE, np.uint8))
    (mask,) = predict(tmp_path / "field.tif", tmp_path / "out", classes, mask_values="own")
    np.testing.assert_array_equal(tifffile.imread(mask)[0, 0], value)
    assert geo_tags(mask)[33550] == TAGS[33550][1]


@pytest.mark.parametrize(
    ("picture", "beside", "mask", "written"),
    [
        ("a.png", "a.pgw", "a.mask.png", "a.mask.pgw"),
        ("a.jpg", "a.JGW", "a.mask.png", "a.mask.pgw"),
        ("a.jpeg", "a.jpegw", "a.mask.png", "a.mask.pgw"),
        ("a.tif", "a.tfw", "a.mask.png", "a.mask.pgw"),
        ("a.TIF", "a.TIF.wld", "a.mask.png", "a.mask.pgw"),
        ("a.jpg", "a.prj", "a.mask.png", "a.mask.prj"),
        ("a.jpg", "a.jpg.aux.xml", "a.mask.png", "a.mask.png.aux.xml"),
    ],
)
def test_world_and_projection_files_are_written_beside_the_mask(picture, beside, mask, written, tmp_path, caplog):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / picture)
    content = AUXILIARY if beside.endswith("xml") else WORLD
    (tmp_path / beside).write_bytes(content)
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "petseg"):
            assert predict(tmp_path, tmp_path / "out") == [tmp_path / "out" / mask]
    assert not caplog.messages  # such files are not named as unreadable pictures
    expected = b"<PAMDataset><SRS>EPSG:32633</SRS></PAMDataset>" if content is AUXILIARY else content
    assert (tmp_path / "out" / written).read_bytes() == expected
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_a_world_file_of_the_user_is_not_overwritten(tmp_path):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.jpg")
    for name in ("a.jgw", "a.mask.pgw"):
        (tmp_path / name).write_bytes(WORLD)
    predict(tmp_path / "a.jpg", tmp_path)  # it has the right content
    (tmp_path / "a.mask.png").unlink()
    (tmp_path / "a.mask.pgw").write_bytes(b"1\n")
    with pytest.raises(WorkDirectoryError, match=r"a\.mask\.pgw would be overwritten"):
        predict(tmp_path / "a.jpg", tmp_path)


def test_a_georeference_that_is_lost_is_logged(tmp_path, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "turned.jgw").write_bytes(WORLD)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg.aux.xml").write_text("no XML")
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "b.jp2")
    data = (tmp_path / "b.jp2").read_bytes()
    (tmp_path / "b.jp2").write_bytes(data + b"gml.root-instance")
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "plain.jpg")
    with caplog.at_level(logging.WARNING, "petseg"):
        predict(tmp_path, tmp_path / "out")
    (line,) = caplog.messages
    assert line.startswith("the masks of 3 pictures have no georeference, since ")
    assert line.endswith(": a.jpg, b.jp2, turned.jpg")
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".png", ".jpg"}
