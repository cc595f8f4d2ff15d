import io
import struct
import threading

import numpy as np
import pytest
import tensorflow as tf
from made_folders import mask, picture
from PIL import Image

from petseg.classes import Classes
from petseg.config.image_spec import PLAIN
from petseg.data import images, picture_files
from petseg.data.exif_orientation import ORIENTATION
from petseg.data.folders import pair_files
from petseg.data.folders.faults import Kind
from petseg.data.folders.mask_values import MaskCoding

CODING = MaskCoding(Classes.from_dict(["a", "b", "c"]))
TURNED_BY_90 = 6  # as EXIF numbers it


def encoded(content, file_format="PNG", mode=None, **options):
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, file_format, **options)
    return buffer.getvalue()


def read(image, mask_file=None):
    return pair_files.decode_pair("a.jpg", image, "a.png", encoded(mask()) if mask_file is None else mask_file, CODING)


def fault(pair):
    (only,) = pair.faults
    return only.kind, str(only)


PICTURE, PHOTOGRAPH = encoded(picture()), encoded(picture(200, 200), "JPEG")


def test_a_valid_pair_keeps_its_image_file_and_gets_class_ids():
    image = encoded(picture(), "JPEG")
    pair = read(image)
    assert not pair.faults
    assert pair.image == image
    assert (pair.size, pair.modes) == ((12, 16), ("RGB", "L"))
    np.testing.assert_array_equal(pair.ids, mask())
    np.testing.assert_array_equal(tf.io.decode_image(pair.mask)[..., 0], mask())


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [("PNG", None), ("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "1"), ("BMP", None),
     ("BMP", "L"), ("BMP", "P"), ("TIFF", None), ("WEBP", None), ("GIF", None), ("PPM", None), ("TIFF", "CMYK")],
)  # fmt: skip
def test_tensorflow_decodes_every_format_to_the_pixels_of_pillow(file_format, mode):
    options = {"lossless": True} if file_format == "WEBP" else {}
    image = encoded(picture(), file_format, mode, **options)
    expected = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    np.testing.assert_array_equal(tf.io.decode_image(read(image).image, channels=3), expected)


def test_a_cmyk_jpeg_can_be_decoded():
    image = encoded(picture(), "JPEG", "CMYK")
    expected = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    np.testing.assert_array_equal(tf.io.decode_image(read(image).image, channels=3), expected)


def test_an_mpo_file_with_a_second_image_can_be_decoded():
    image = encoded(picture(), "MPO", save_all=True, append_images=[Image.fromarray(picture(6, 8))])
    pair = read(image)
    assert (pair.faults, pair.image) == ((), image)
    assert tf.io.decode_image(image, channels=3).shape == (12, 16, 3)


def test_a_png_without_its_end_but_with_all_pixels_can_be_decoded():
    image = PICTURE[:-12]
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.io.decode_image(image)
    np.testing.assert_array_equal(tf.io.decode_image(read(image).image), picture())


def test_16_bit_images_keep_their_bits():
    shades = np.linspace(0, 4095, 12 * 16).reshape(12, 16).astype(np.uint16)
    decoded = tf.io.decode_image(read(encoded(shades)).image, channels=3, dtype=tf.uint16).numpy()
    np.testing.assert_array_equal(decoded[..., 0], shades)


def turned(height, width, orientation=TURNED_BY_90):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(picture(height, width), "JPEG", exif=exif)


def test_an_image_is_rotated_according_to_exif():
    image = turned(16, 12)
    pair = read(image)
    assert not pair.faults
    upright = np.rot90(np.asarray(Image.open(io.BytesIO(image))), -1)
    np.testing.assert_array_equal(tf.io.decode_image(pair.image, channels=3), upright)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_that_only_fits_the_image_as_stored_is_turned_with_it(orientation):
    image, weight = turned(12, 16, orientation), picture_files.FileContent(encoded(mask() + 1))
    pair = pair_files.decode_pair("a.jpg", image, "a.png", encoded(mask()), CODING, None, ("w.png", weight))
    assert not pair.faults
    prepared = images.prepared(picture_files.decode(image), PLAIN)  # what prediction sees
    np.testing.assert_array_equal(tf.io.decode_image(pair.image, channels=3), prepared)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    of_mask = picture_files.decode(encoded(mask(), exif=exif)).upright().pixels[..., 0]
    np.testing.assert_array_equal(pair.ids, of_mask)
    np.testing.assert_array_equal(pair.weight.pixels[..., 0], of_mask + 1)
    np.testing.assert_array_equal(tf.io.decode_image(pair.mask)[..., 0], of_mask)


@pytest.mark.parametrize(
    ("image", "mask_file", "kind", "message"),
    [
        (
            PHOTOGRAPH[:3000],
            encoded(mask(height=200, width=200)),
            Kind.UNREADABLE,
            "a.jpg: cannot be read: image file is",
        ),
        (b"none", None, Kind.UNREADABLE, "a.jpg: cannot be read: 4 bytes of no known format; must be a complete image"),
        (b"", None, Kind.UNREADABLE, "a.jpg: cannot be read: it is empty"),
        (PICTURE, b"", Kind.UNREADABLE, "a.png: cannot be read"),
        (
            encoded(picture(12, 15)),
            None,
            Kind.SIZES,
            "a.jpg: is 12 x 15 (height x width), its mask a.png 12 x 16; both must be one size",
        ),
        (
            encoded(picture(1, 1)),
            encoded(mask(height=1, width=1)),
            Kind.SMALL,
            "a.jpg: is 1 x 1 pixels; must be at least 8 x 8",
        ),
        (
            PICTURE,
            encoded(mask(), "JPEG"),
            Kind.INEXACT,
            "a.png: is a mask in JPEG, which changes values at every edge; must be a PNG",
        ),
        (
            PICTURE,
            encoded(mask(0, 7, 255)),
            Kind.VALUES,
            "a.png: holds value 7 in no class (60 pixels, the first at row 0, column 1); must be 0 to 2, or 255",
        ),
        (PICTURE, encoded(mask(0, 3, 4)), Kind.VALUES, "a.png: holds value 3 and 1 more in no class"),
        (PICTURE, PICTURE, Kind.VALUES, "a.png: holds colours"),
        (
            encoded(np.full((12, 16), np.nan, np.float32), "TIFF"),
            None,
            Kind.IMAGES,
            "a.jpg: holds NaN or infinite values in 192 pixels; must be finite: replace them",
        ),
    ],
    ids=["truncated", "none", "empty", "mask", "sizes", "1x1", "jpeg-mask", "value", "values", "colours", "floats"],
)
def test_faults_of_a_pair_name_the_file_and_what_it_must_be(image, mask_file, kind, message):
    pair = read(image, mask_file)
    found, text = fault(pair)
    assert (found, text[: len(message)]) == (kind, message)
    assert "\n" not in text
    assert not pair.image


def test_faults_of_both_files_of_a_pair_are_collected():
    assert [each.where for each in read(b"", b"").faults] == ["a.jpg", "a.png"]


def test_map_in_order_yields_in_order_and_computes_a_bounded_number_ahead():
    started, slow = [], threading.Event()

    def work(number):
        if number == 0:
            slow.wait(10)
        started.append(number)
        return number

    results = pair_files.map_in_order(work, iter(range(100)), 2)
    threading.Timer(0.05, slow.set).start()
    assert next(results) == 0
    assert len(started) < 10
    assert list(results) == list(range(1, 100))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("file_format", ["WEBP", "JPEG", "PNG"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"\xff" * 40])
def test_an_image_with_a_broken_exif_header_is_not_rotated(file_format, exif):
    pair = read(encoded(picture(), file_format, exif=exif))
    assert not pair.faults
    assert pair.size == (12, 16)
    assert pair.image


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_image_is_rotated_although_other_exif_entries_are_broken():
    entries = [(0x0112, 3, 1, 6), (0x8769, 4, 1, 0xFFFFFF), (0x011A, 5, 1, 0xFFFFF0)]
    body = b"".join(struct.pack("<HHLL", *entry) for entry in sorted(entries))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0\0\0\0"
    pair = read(encoded(picture(), "JPEG", exif=exif), encoded(mask(height=16, width=12)))
    assert not pair.faults
    assert pair.size == (16, 12)
