"""The reader of picture files: true depth, all bands, pages, orientation, palettes; what it cannot read, it names."""

import io
import struct
import sys

import numpy as np
import pytest
import tifffile
from made_files import npy, tiff
from PIL import Image, ImageOps

from petseg.data import picture_files
from petseg.data.picture import PictureError

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (20, 24, 5), np.uint16)
COLORS = RNG.integers(0, 256, (20, 24, 3), np.uint8)


def encoded(picture, file_format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def png16(array):
    imagecodecs = pytest.importorskip("imagecodecs")
    return imagecodecs.png_encode(np.ascontiguousarray(array))


def netpbm(array, kind, largest):
    return b"%s\n24 20\n%d\n" % (kind, largest) + array.astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("make", "expected", "alpha"),
    [
        (lambda: png16(DEEP[..., :2]), DEEP[..., :2], True),
        (lambda: png16(DEEP[..., :3]), DEEP[..., :3], False),
        (lambda: png16(DEEP[..., :4]), DEEP[..., :4], True),
        (lambda: encoded(Image.fromarray(DEEP[..., 0]), "PNG"), DEEP[..., :1], False),
        (lambda: encoded(Image.fromarray(DEEP[..., 0]), "TIFF"), DEEP[..., :1], False),
        (lambda: tiff(DEEP[..., :3], photometric="rgb"), DEEP[..., :3], False),
        (lambda: tiff(DEEP[..., :4], photometric="rgb"), DEEP[..., :4], True),
        (lambda: tiff(DEEP[..., :4], photometric="rgb", extrasamples=["unspecified"]), DEEP[..., :4], False),
        (lambda: tiff(DEEP, photometric="minisblack", planarconfig="contig"), DEEP, False),
        (lambda: tiff(DEEP, photometric="minisblack", planarconfig="contig", compression="lzw"), DEEP, False),
        (lambda: tiff(DEEP, photometric="minisblack", planarconfig="contig", compression="deflate"), DEEP, False),
        (lambda: tiff(np.moveaxis(DEEP, 2, 0), photometric="minisblack", planarconfig="separate"), DEEP, False),
        (lambda: tiff(DEEP[..., 0], photometric="miniswhite"), 65535 - DEEP[..., :1], False),
        (lambda: tiff(DEEP[..., 0].astype(np.int16)), DEEP[..., :1].astype(np.int16).astype(np.int32), False),
        (lambda: tiff(DEEP[..., 0] * np.uint32(9)), DEEP[..., :1] * np.uint32(9), False),
        (lambda: tiff(DEEP[..., 0] / np.float32(7)), DEEP[..., :1] / np.float32(7), False),
        (lambda: tiff(DEEP[..., 0] / 7), (DEEP[..., :1] / 7).astype(np.float32), False),
        (lambda: netpbm(DEEP[..., 0], b"P5", 65535), DEEP[..., :1], False),
        (lambda: netpbm(DEEP[..., :3] >> 4, b"P6", 4095), DEEP[..., :3] >> 4, False),
        (lambda: npy(DEEP), DEEP, False),
        (lambda: npy(DEEP[..., 0].astype(np.int64)), DEEP[..., :1].astype(np.int32), False),
        (lambda: npy(COLORS[..., 0] > 99), np.uint8(COLORS[..., :1] > 99) * 255, False),
    ],
)
def test_all_bands_are_read_in_their_depth(make, expected, alpha):
    found = picture_files.decode(make())
    assert (found.pixels.dtype, found.alpha, found.pages) == (expected.dtype, alpha, 1)
    np.testing.assert_array_equal(found.pixels, expected)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "GIF"])
def test_of_a_file_with_a_palette_indices_and_colours_are_given(file_format):
    picture = Image.fromarray(COLORS).quantize(16)
    found = picture_files.decode(encoded(picture, file_format))
    np.testing.assert_array_equal(found.colors().pixels, np.asarray(picture.convert("RGB")))
    assert found.pixels.shape == (20, 24, 1)
    transparent = picture_files.decode(encoded(picture, "PNG", transparency=3))
    np.testing.assert_array_equal(
        transparent.colors().pixels[..., 3], np.where(transparent.pixels[..., 0] == 3, 0, 255)
    )
    assert transparent.alpha_varies
    assert not found.alpha_varies


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_are_as_in_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(COLORS), "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(picture_files.decode(data).upright().pixels, upright)
    of_pillow = picture_files.decode(encoded(Image.fromarray(COLORS), "TIFF", exif=exif))
    of_tifffile = picture_files.decode(
        tiff(COLORS.astype(np.uint16), photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    )
    for read in (of_pillow, of_tifffile):
        assert read.orientation == 1
        np.testing.assert_array_equal(read.pixels, upright)


def test_pages_are_counted_and_read_one_by_one(tmp_path):
    stack = tiff(np.moveaxis(DEEP, 2, 0), photometric="minisblack")
    frames = [Image.fromarray(COLORS), Image.fromarray(255 - COLORS)]
    moving = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(PictureError, match=r"^holds 5 pages; must hold one, or --pages=examples"):
        picture_files.decode(stack)
    np.testing.assert_array_equal(picture_files.decode(stack, 3).pixels, DEEP[..., 3:4])
    np.testing.assert_array_equal(picture_files.decode(moving, 1).pixels, 255 - COLORS)
    (tmp_path / "stack.tif").write_bytes(stack)
    assert picture_files.count_pages(tmp_path / "stack.tif") == 5
    with pytest.raises(PictureError, match=r"^holds 5 pages, and page 6 was asked for$"):
        picture_files.read(tmp_path / "stack.tif", 5)


def test_pages_may_be_read_in_any_order():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for page in (
            COLORS[..., :3],
            COLORS[..., 0],
            DEEP[..., :3],
            DEEP[..., 0],
            COLORS[..., 1],
            COLORS[..., :3] // 2,
        ):
            options = {"photometric": "rgb" if page.ndim == 3 else "minisblack", "compression": "deflate"}
            writer.write(page, **options, extratags=[(274, 3, 1, 1 + page.ndim, False)])
    content = picture_files.FileContent(buffer.getvalue())
    digests = {content.digest(page) for page in (None, *range(6))}
    assert len(digests) == 7
    for page in (4, 0, 5, 2, 1, 3, 0, 1):
        found, expected = content.picture(page), picture_files.decode(buffer.getvalue(), page)
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert (found.mode, found.pages, found.lossy) == (expected.mode, 6, "")


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_each_frame_of_an_animation_is_decoded_once(file_format, monkeypatch):
    frames = [Image.fromarray(np.roll(COLORS, 3 * i, axis=0)) for i in range(12)]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True)
    expected = [picture_files.decode(data, page) for page in range(12)]
    seeks, kind = [], type(Image.open(io.BytesIO(data)))
    seek = kind.seek
    monkeypatch.setattr(kind, "seek", lambda image, page: (seeks.append(page), seek(image, page)))
    content = picture_files.FileContent(data)
    content.picture(0)
    seeks.clear()
    for page in (1, 2, 3, 5, 6, 4, 8, 7, 11, 9, 10):  # as threads ask for them
        found = content.picture(page)
        np.testing.assert_array_equal(found.colors().pixels, expected[page].colors().pixels)
        assert (found.mode, found.pages, found.lossy) == (expected[page].mode, 12, "")
    assert seeks == sorted(seeks)
    for page in (0, 9, 3, 4):  # from the first one again
        np.testing.assert_array_equal(content.picture(page).colors().pixels, expected[page].colors().pixels)
    assert len(picture_files.FileContent(data).picture(11).pixels) == 20


def test_thumbnails_and_coarser_copies_are_no_pages():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(DEEP[..., :3], photometric="rgb")
        writer.write(DEEP[::2, ::2, :3], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(picture_files.decode(buffer.getvalue()).pixels, DEEP[..., :3])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read: it is empty; must be a complete image"),
        (b"hello " * 9, "cannot be read: 54 bytes of no known format; must be a complete image"),
        (b"version https://git-lfs.github.com/spec/v1", "cannot be read: is a pointer of Git LFS; `git lfs pull`"),
        (b"\0" * 128 + b"DICM", "cannot be read: is DICOM; must be converted to TIFF or .npy, with its own pixel"),
        (npy(np.zeros((5, 64, 64))), "got float64 [5, 64, 64]; must be numbers [height, width] or [height, width, "
         "channels] of 1 to 32 channels; with the channels first: np.moveaxis(array, 0, -1)"),
        (npy(np.array(["text"])), "got <U4 [1]; must be numbers [height, width] or"),
        (npy(np.full((9, 9), 2**40)), "holds int64 values beyond 32 bits; must be 32 bits or less"),
        (tiff(DEEP)[:400], "cannot be read: "),
        (encoded(Image.fromarray(COLORS), "PNG")[:300], "cannot be read: image file is truncated"),
    ],
)  # fmt: skip
def test_unreadable_files_are_reported_in_one_line(data, message):
    with pytest.raises(PictureError) as error:
        picture_files.decode(data)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_without_a_package_its_extra_is_named(monkeypatch):
    data = tiff(DEEP, photometric="minisblack", planarconfig="contig", compression="lzw")

    def missing(*_):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", missing)
    with pytest.raises(PictureError, match=r"^cannot be read: compressed as LZW; pip install 'petseg\[tiff\]' reads"):
        picture_files.decode(data)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    jpeg2000 = encoded(Image.fromarray(np.full((64, 64), 4000, np.uint16)), "JPEG2000")
    with pytest.raises(PictureError, match=r"^cannot be read: has 16 bits; pip install 'petseg\[tiff\]' reads it$"):
        picture_files.decode(jpeg2000)


def test_heic_is_read_with_its_package():
    pytest.importorskip("pillow_heif")
    Image.init()
    from petseg.data.picture_formats import suffixes

    assert ".heic" in suffixes()
    found = picture_files.decode(encoded(Image.fromarray(np.full((64, 64, 3), 90, np.uint8)), "HEIF"))
    np.testing.assert_allclose(found.pixels, 90, atol=2)


def test_more_than_8_bits_in_formats_that_are_read_as_8_are_refused():
    pillow_heif, imagecodecs = pytest.importorskip("pillow_heif"), pytest.importorskip("imagecodecs")
    buffer, deep = io.BytesIO(), np.full((64, 64, 3), 900, np.uint16)
    pillow_heif.from_bytes("RGB;16", (64, 64), (deep << 6).tobytes()).save(buffer)
    grey = Image.fromarray(COLORS[..., 0])
    for kind, data in (
        ("HEIF", buffer.getvalue()),
        ("AVIF", imagecodecs.avif_encode(deep, bitspersample=10)),
        ("SGI", encoded(grey, "SGI", bpc=2)),
    ):
        with pytest.raises(PictureError, match=rf"^has more than 8 bits in {kind}, of which .* must be PNG or TIFF"):
            picture_files.decode(data)
    np.testing.assert_array_equal(picture_files.decode(encoded(grey, "SGI")).pixels, COLORS[..., :1])
    assert picture_files.decode(encoded(Image.fromarray(COLORS), "AVIF")).mode == "RGB"


def test_bands_are_counted_before_they_are_decoded(monkeypatch):
    data = tiff(np.zeros((40, 40, 33), np.uint8), photometric="minisblack", planarconfig="contig")
    monkeypatch.setattr(tifffile.TiffPage, "asarray", None)
    monkeypatch.setattr(np, "load", None)
    for content in (data, npy(np.zeros((40, 40, 33)))):
        with pytest.raises(PictureError, match=r"^got .* \[40, 40, 33\]; must be numbers .* of 1 to 32 channels$"):
            picture_files.decode(content)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded():
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<u2", "fortran_order": False, "shape": (10_000, 9_000)})
    picture = Image.new("L", (8, 8))
    small = encoded(picture, "TIFF")
    large = small.replace(struct.pack("<HHII", 256, 4, 1, 8), struct.pack("<HHII", 256, 4, 1, 12_000_000))
    assert large != small
    for data in (buffer.getvalue(), large):
        for read in (picture_files.decode, picture_files.size_in_header):
            with pytest.raises(PictureError, match=r"pixels are 9\d million; must be at most 89 million$"):
                read(data)
