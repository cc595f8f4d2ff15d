"""Channels, depth and intensity range of images: what training sees of a file is what prediction sees of it."""

import io
import re

import numpy as np
import pytest
import tifffile
from made_files import npy, tiff
from made_folders import config, mask
from PIL import Image

from petseg.config.image_spec import ImageSpec
from petseg.data import catalog, check, image_flags, images, loading
from petseg.data.check import CheckConfig
from petseg.data.picture import PictureError, of_bands
from petseg.errors import DataError

HEIGHT, WIDTH = 12, 16
RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
DEEP = RNG.integers(0, 4096, (HEIGHT, WIDTH, 5), np.uint16)


def encoded(array, file_format, mode=None, **options):
    buffer, picture = io.BytesIO(), Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(buffer, file_format, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def bands(array):
    return tiff(array, photometric="minisblack", planarconfig="contig", compression="deflate")


RGB = COLORS[..., :3]
EIGHT_BITS = {
    "a.jpg": encoded(RGB, "JPEG"),
    "b.jpg": encoded(RGB, "JPEG", "L"),
    "c.jpg": encoded(RGB, "JPEG", "CMYK"),
    "d.jpg": encoded(RGB, "JPEG", exif=turned(3)),
    "e.png": encoded(RGB, "PNG", "1"),
    "f.png": encoded(RGB[..., 0] // 16, "PNG", "P", bits=4),
    "g.png": encoded(RGB, "PNG", "P"),
    "h.png": encoded(COLORS, "PNG"),
    "i.png": encoded(RGB, "PNG", "LA"),
    "j.png": encoded(RGB, "PNG", exif=turned(2)),
    "k.tif": encoded(RGB, "TIFF"),
    "l.tif": encoded(COLORS, "TIFF"),
    "m.tif": encoded(RGB, "TIFF", "CMYK"),
    "n.webp": encoded(RGB, "WEBP"),
    "o.bmp": encoded(RGB, "BMP"),
    "p.gif": encoded(RGB, "GIF"),
    "q.ppm": encoded(RGB, "PPM"),
    "r.npy": npy(RGB),
    "s.png": encoded(RGB, "PNG", transparency=(1, 2, 3)),
    "t.tif": tiff(COLORS, photometric="rgb", extrasamples=["unassalpha"]),
}
SIXTEEN_BITS = {
    "a.png": encoded(DEEP[..., 0], "PNG"),
    "b.tif": encoded(DEEP[..., 0], "TIFF"),
    "c.tif": tiff(DEEP[..., :3], photometric="rgb"),
    "d.npy": npy(DEEP[..., :3]),
    "e.ppm": b"P6\n16 12\n4095\n" + DEEP[..., :3].astype(">u2").tobytes(),
    "f.tif": tiff(DEEP[..., :4], photometric="rgb"),
}
FLOATS = {
    "a.tif": tiff(DEEP[..., 0] / np.float32(2)),
    "b.npy": npy(DEEP[..., :1] / 2),
    "c.tif": tiff(DEEP[..., 0].astype(np.int32)),
}
BANDS = {"a.tif": bands(DEEP), "b.npy": npy(DEEP), "c.tif": bands(DEEP[::-1].copy())}
NEAR_INFRARED = {"a.png": encoded(COLORS, "PNG"), "b.tif": tiff(COLORS, photometric="rgb"), "c.npy": npy(COLORS)}


def write(root, files, sizes=None):
    """A folder with the files as images of both splits."""
    for split in ("train", "test"):
        for name, data in files.items():
            for kind, content in (("images", data), ("masks", encoded(mask(), "PNG"))):
                file = root / kind / split / (name if kind == "images" else f"{name[:-4].rstrip('.')}.png")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
    return root


def resolved(root, **flags):
    data = config(root, **flags)
    return image_flags.resolved(data, catalog.open_data(data))


@pytest.mark.parametrize(
    ("files", "flags", "expected"),
    [
        (EIGHT_BITS, {}, (3, "uint8")),
        (EIGHT_BITS, {"channels": 1}, (1, "uint8")),
        (SIXTEEN_BITS, {}, (3, "uint16")),
        (FLOATS, {}, (3, "float32")),
        (BANDS, {}, (5, "uint16")),
        (NEAR_INFRARED, {"channels": 4}, (4, "uint8")),
        ({"a.png": encoded(RGB, "PNG", "LA")}, {"channels": 2}, (2, "uint8")),
    ],
    ids=["8-bit", "8-bit-grey", "16-bit", "floats", "bands", "near-infrared", "grey-and-opacity"],
)
def test_training_sees_the_pixels_that_prediction_sees(files, flags, expected, tmp_path):
    root = write(tmp_path / "folder", files)
    data = resolved(root, **flags)
    assert (data.channels, data.image_dtype) == expected
    pairs = list(loading.native_pairs(data, "test"))
    assert len(pairs) == len(files)
    for name, (seen, _) in zip(sorted(files), pairs, strict=True):
        predicted = images.read(root / "images" / "test" / name, data.image_spec)
        assert seen.dtype == predicted.dtype == data.image_spec.travels_as
        assert seen.shape[2] == data.channels
        np.testing.assert_array_equal(seen, predicted, name)


SCALES = [  # range of a run, values of images, whether they are on its scale
    ((0, 1), RGB.astype(np.float32), False),
    ((0, 1), RGB.astype(np.int32), False),
    ((0, 1), np.clip(RGB / 100, 0, 1.5), True),  # overexposed
    ((0, 255), RGB / np.float32(255), False),
    ((0, 255), RGB * np.float32(0), True),
    ((-160, 240), RGB * np.float32(6) - 1000, True),  # a window of computed tomography
    *(((0, high), RGB * np.float32(6) - 1000, True) for high in (80, 1000, 2000)),
    ((0, 1), RGB / np.float32(127.5) - 1, False),
    ((0.01, 0.9), RGB / np.float32(60) - 2, False),  # standardised
    ((0, 255), RGB / np.float32(127.5) - 1, False),
    ((0, 255), RGB.astype(np.int32) - 128, False),
    ((-1, 1), RGB / np.float32(127.5) - 1, True),
    ((0, 1), RGB / np.float32(255) - 0.1, True),  # below 0 by resampling
    ((0, 4095), RGB.astype(np.uint16) * 257, False),
    ((0, 4095), RGB.astype(np.uint16), True),  # dark
]


@pytest.mark.parametrize(("limits", "values", "fits"), SCALES)
def test_images_on_another_scale_than_those_of_the_training_are_refused(limits, values, fits):
    picture = of_bands(values, "ARRAY")
    spec = ImageSpec(3, "uint16" if values.dtype == np.uint16 else "float32", *((float(each),) for each in limits))
    if fits:
        images.prepared(picture, spec)
    else:
        with pytest.raises(PictureError, match=r"^holds values from .* to .*; must be on the scale of the training im"):
            images.prepared(picture, spec)


def test_a_split_on_another_scale_than_that_of_the_run_is_refused(tmp_path):
    root = write(tmp_path / "folder", {"a.tif": tiff(RGB.astype(np.float32), photometric="rgb")})
    data = config(root, channels=3, image_dtype="float32", intensity_range="0,1", image_size="32")
    with pytest.raises(DataError, match=r"^folder, split test: holds values from \d+ to 25\d; must be on the scale of"):
        loading.load(data, "test")


def test_a_split_of_8_bit_values_where_training_has_16_bits_is_refused(tmp_path):
    root = write(tmp_path / "folder", {"a.tif": tiff(RGB.astype(np.uint16), photometric="rgb")})
    data = config(root, channels=3, image_dtype="uint16", intensity_range="0,60000", image_size="32")
    with pytest.raises(DataError, match=r"^folder, split test: holds values of 8 bits, up to 25\d; must be on the sca"):
        loading.load(data, "test")


def test_8_bit_values_beside_16_bits_are_a_warning(tmp_path, caplog):
    root = write(tmp_path / "folder", {f"{i}.tif": tiff(RGB.astype(np.uint16) * 257**i) for i in range(2)})
    resolved(root)
    assert any(
        "1 of 2 images hold values up to 255, others beyond 4080; if not all" in line for line in caplog.messages
    )


def test_deep_images_keep_their_numbers_in_every_cache(tmp_path):
    root = write(tmp_path / "folder", BANDS)
    expected = None
    for flags in ({}, {"cache": "disk"}, {"cache": "none"}, {"resize": "letterbox"}):
        examples = loading.load(config(root, image_size="32", **flags), "test")
        found = examples.read(range(3))[0]
        assert (found.dtype, found.shape) == (np.uint16, (3, 32, 32, 5))
        if "resize" in flags:
            np.testing.assert_array_equal(np.unique(found[:, 0], axis=1)[0, 0], resolved(root).image_spec.padding)
            continue
        expected = found if expected is None else expected
        np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) > 2000


def test_the_intensity_range_is_that_of_the_training_split(tmp_path, caplog):
    root = write(tmp_path / "folder", SIXTEEN_BITS)
    with caplog.at_level("INFO", "petseg"):
        low, high = map(float, resolved(root).intensity_range.split(","))
    assert 0 <= low < 20
    assert 4075 < high <= 4095
    assert any("of 6 images of train are scaled to 0 and 255" in line for line in caplog.messages)
    assert resolved(root, intensity_range="0,1000").intensity_range == "0,1000"
    assert resolved(write(tmp_path / "eight", {"a.png": encoded(RGB, "PNG")})).intensity_range == "0,255"
    per_channel = resolved(write(tmp_path / "bands", BANDS)).intensity_range.split(",")
    assert len(per_channel) == 10


@pytest.mark.parametrize(
    ("files", "flags", "message"),
    [
        ({"a.png": encoded(RGB, "PNG"), "b.tif": tiff(DEEP[..., 0]), "c.png": encoded(RGB, "PNG")}, {},
         "images/train/b.tif: has 1 channel of 16 bits, images/train/a.png has 3 channels of 8 bits; all images must "),
        ({"a.tif": bands(DEEP), "b.tif": bands(DEEP[..., :4]), "c.npy": npy(DEEP)}, {},
         "images/train/b.tif: has 4 channels of 16 bits; images/train/a.tif has 5 channels of 16 bits; all images"),
        ({"a.png": encoded(RGB, "PNG")}, {"channels": 4},
         "images/train/a.png: has 3 channels of 8 bits; must have 4, as --channels says"),
        ({"a.png": encoded(RGB, "PNG")}, {"image_dtype": "uint16"},
         "images/train/a.png: has 3 channels of 8 bits; must have 16 bits, as --image_dtype or the run says"),
        ({"a.tif": tiff(np.full((12, 16), 7, np.uint16))}, {}, "--train_split=train: all pixel values are 7"),
        ({f"{i}.tif": tiff(np.linspace(0, 255**i, 192).reshape(12, 16).astype("f4")) for i in range(2)},
         {}, "--train_split=train: 1 of 2 images hold pixel values up to 1, 1 up to 255; must be of one scale, or --i"),
        ({"a.npy": npy(RGB / np.float32(60) - 2), "b.npy": npy(RGB.astype(np.float32))}, {},
         "--train_split=train: 1 of 2 images hold pixel values around 0, as standardised ones do, 1 those of 8 bits; "),
        ({"a.tif": tiff(np.where(np.arange(192) % 9 == 0, -9999, np.linspace(0, 1, 192)).reshape(12, 16).astype("f4"))},
         {}, "--train_split=train: 11.5% of the pixel values are -9999, far from all others, as for missing data; --in"
         "tensity_range must be LOW,HIGH of the others, such as 0.00"),
    ],
)  # fmt: skip
def test_images_that_differ_are_refused_by_name(files, flags, message, tmp_path):
    root = write(tmp_path / "folder", files)
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        resolved(root, **flags)


def test_the_checker_reports_what_training_refuses_and_opacity_that_is_not_used(tmp_path, capsys):
    mixed = write(tmp_path / "mixed", {"a.png": encoded(RGB, "PNG"), "b.tif": tiff(DEEP[..., 0])})
    with pytest.raises(DataError, match="1 fault"):
        check.main(CheckConfig(config(mixed), check.CheckOptions(output_dir=str(tmp_path))))
    assert "images/train/b.tif: has 1 channel of 16 bits" in capsys.readouterr().out
    transparent = write(tmp_path / "transparent", {"a.png": encoded(COLORS, "PNG")})
    note = "note: 2 images have a varying alpha channel (images/train/a.png), which is not used: --channels=4 uses it"
    for flags, is_noted in (({}, True), ({"channels": 3}, False), ({"channels": 4}, False)):
        check.main(CheckConfig(config(transparent, **flags), check.CheckOptions(output_dir=str(tmp_path))))
        assert (note in capsys.readouterr().out) == is_noted


def test_a_picture_of_another_depth_or_with_nan_is_refused():
    with pytest.raises(PictureError, match=r"^has 1 channel of 16 bits; the network was trained on images of 8 bits"):
        images.prepared(of_bands(DEEP[..., 0], "ARRAY"), ImageSpec())
    with pytest.raises(PictureError, match=r"^has 5 channels of 16 bits; must have 3 channels$"):
        images.prepared(of_bands(DEEP, "ARRAY"), ImageSpec(3, "uint16"))
    with pytest.raises(PictureError, match=r"^holds NaN or infinite values in 192 pixels; must be finite"):
        images.prepared(of_bands(DEEP[..., 0] * np.nan, "ARRAY"), ImageSpec(3, "float32"))


def test_pages_of_stacks_become_examples(tmp_path, monkeypatch):
    root = tmp_path / "folder"
    stack = np.stack([DEEP[..., i] for i in range(3)])
    labels = np.stack([np.roll(mask(), i, axis=1) for i in range(3)])
    for split in ("train", "test"):
        for kind, content in (("images", stack), ("masks", labels)):
            (root / kind / split).mkdir(parents=True)
            (root / kind / split / "scan.tif").write_bytes(tiff(content, photometric="minisblack"))
    with pytest.raises(DataError, match=r"/scan.tif: holds 3 pages; must hold one, or --pages="):
        catalog.open_data(config(root))
    data, parsed, parse = config(root, pages="examples"), [], tifffile.TiffFile
    monkeypatch.setattr(tifffile, "TiffFile", lambda *arguments: parsed.append(1) or parse(*arguments))
    catalog.open_data(data)
    assert len(parsed) == 4 + 2 + 4  # to count the pages of each file, to find classes, to read: not for each page
    examples = loading.load(data, "test")
    assert list(examples.names) == [f"images/test/scan.tif#{page}" for page in (1, 2, 3)]
    for page, (image, ids) in enumerate(loading.native_pairs(data, "test")):
        np.testing.assert_array_equal(image[..., 0], stack[page])
        np.testing.assert_array_equal(ids[..., 0], labels[page])
