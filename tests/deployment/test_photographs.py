"""Photographs are read as 8-bit RGB; files that are too large or not images are refused."""

import logging
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from petseg.deployment import photographs
from petseg.errors import DataError


def photograph(height=90, width=120, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def saved(tmp_path, name, picture, **options):
    picture.save(tmp_path / name, **options)
    return photographs.read_image(tmp_path / name)


def test_orientation_grey_palettes_16_bits_and_transparency_become_rgb(tmp_path):
    image = photograph()
    grey = np.asarray(Image.fromarray(image).convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown a quarter turn clockwise
    turned = saved(tmp_path, "turned.png", Image.fromarray(image), exif=exif)
    np.testing.assert_array_equal(turned, np.rot90(image, -1))
    grey_rgb = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(saved(tmp_path, "grey.png", Image.fromarray(grey)), grey_rgb)
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(saved(tmp_path, "sixteen.png", sixteen), grey_rgb)
    np.testing.assert_array_equal(saved(tmp_path, "sixteen.tif", sixteen), grey_rgb)
    palette = Image.fromarray(image).quantize(256)
    np.testing.assert_array_equal(saved(tmp_path, "palette.png", palette), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(
        saved(tmp_path, "one.png", Image.fromarray(grey > 128)), np.uint8(grey_rgb > 128) * 255
    )
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[:10] = 0
    transparent = saved(tmp_path, "alpha.png", Image.fromarray(np.dstack([image, alpha])))
    assert (transparent[:10] == 255).all()
    np.testing.assert_array_equal(transparent[10:], image[10:])
    cmyk = saved(tmp_path, "cmyk.jpg", Image.fromarray(image).convert("CMYK"))
    assert cmyk.shape == image.shape
    assert cmyk.dtype == np.uint8


def png_header(width, height):
    """The start of a PNG of so many pixels, of which there is none: a decoder would complain of that."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    nothing = b"IDAT"
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, nothing)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("read", [photographs.count_pixels, photographs.read_image])
def test_an_image_of_too_many_pixels_is_refused_before_any_is_decoded(read, tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(10_000, 10_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if read is photographs.count_pixels else "ignore")
        with pytest.raises(DataError, match=r"^10000 x 10000 pixels are 100 million; must be at most 89 million$"):
            read(tmp_path / "bomb.png")
    (tmp_path / "large.png").write_bytes(png_header(8000, 11_000))
    assert photographs.count_pixels(tmp_path / "large.png") == 88_000_000


def test_the_first_frame_of_an_animation_is_used_and_logged(tmp_path, caplog):
    frames = [Image.fromarray(np.full((8, 8), grey, np.uint8)) for grey in (10, 200, 250)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "still.gif")
    with caplog.at_level(logging.INFO, "petseg"):
        moving, still = (photographs.read_image(tmp_path / name) for name in ("moving.gif", "still.gif"))
    np.testing.assert_array_equal(moving, still)
    assert (moving == 10).all()
    assert caplog.messages == [f"{tmp_path / 'moving.gif'}: has 3 frames; uses the first"]


def test_a_folder_is_refused(tmp_path):
    for read in (photographs.count_pixels, photographs.read_image):
        with pytest.raises(DataError, match="is a folder; must be an image file"):
            read(tmp_path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.jpg"])
def test_an_image_with_a_broken_exif_header_is_not_rotated(tmp_path, name):
    picture = Image.fromarray(photograph())
    assert saved(tmp_path, name, picture, exif=b"Exif\0\0garbage").shape == (90, 120, 3)
