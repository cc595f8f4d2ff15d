"""Which formats of images are read, and that no image starts another program."""

import io
import warnings

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from petseg.classes import PETS
from petseg.config.image_spec import PLAIN
from petseg.data import images, picture_files, random_crops
from petseg.data.folders import pair_files
from petseg.data.folders.mask_values import MaskCoding
from petseg.data.picture_formats import open_picture, suffixes
from petseg.deployment import segmenter
from petseg.deployment.demo import views
from petseg.errors import DataError


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program in the place of Ghostscript; gives the file that is there once it has run."""
    trace = tmp_path / "ghostscript-ran"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return trace


def read_pair(file):
    mask = io.BytesIO()
    Image.new("L", (20, 30)).save(mask, "PNG")
    found = pair_files.decode_pair("cat.jpg", file.read_bytes(), "cat.png", mask.getvalue(), MaskCoding(PETS))
    if found.faults:
        raise DataError(str(found.faults[0]))


def size_in_header(file):
    sizes = random_crops.sizes_in_headers([file.read_bytes()], 1)
    if (sizes == 1).all():
        raise DataError("is no image")


@pytest.mark.parametrize(
    "read",
    [
        lambda file: images.read(file, PLAIN),
        picture_files.count_pixels,
        segmenter.as_array,
        lambda file: views.read(file, PLAIN),
        read_pair,
        size_in_header,
        open_picture,
    ],
)
def test_no_image_starts_ghostscript(read, tmp_path, ghostscript):
    file = tmp_path / "photo.jpg"
    Image.new("RGB", (20, 30), "red").save(file, "EPS")
    with pytest.raises((DataError, UnidentifiedImageError)):
        np.asarray(read(file))
    assert not ghostscript.exists()


@pytest.mark.parametrize("suffix", [".jfif", ".avif", ".jp2", ".pgm", ".ppm", ".webp", ".tga", ".tif", ".png"])
def test_images_of_many_formats_are_read(suffix, tmp_path):
    image = np.full((30, 20, 3), (200, 40, 90), np.uint8)
    picture = Image.fromarray(image) if suffix != ".pgm" else Image.fromarray(image[..., 0])
    file = tmp_path / f"photo{suffix}"
    picture.save(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = images.read(file, PLAIN)
    np.testing.assert_allclose(read, np.asarray(picture.convert("RGB")), atol=8)
    assert suffix in suffixes()


def test_suffixes_are_those_of_readable_images():
    assert suffixes() >= {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".mpo"}
    assert suffixes().isdisjoint({".eps", ".ps", ".pdf", ".mpg", ".h5", ".wmf"})
