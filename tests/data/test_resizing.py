"""Pictures that come to the network's size, and back."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings, strategies as st

from petseg.classes import IGNORED
from petseg.data.resizing import GREY, Resizing


def picture(height, width, channels=3):
    return np.random.default_rng(height * width).integers(1, 100, (height, width, channels), np.uint8)


def of_the_picture(method, height, width, size):
    """The rows and columns of the network's input that hold the image, according to the mask."""
    mask = Resizing(size, method).mask(tf.zeros([height, width, 1], tf.uint8)).numpy()[..., 0]
    rows, columns = np.flatnonzero((mask == 0).any(1)), np.flatnonzero((mask == 0).any(0))
    inside = np.zeros(size, bool)
    inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    np.testing.assert_array_equal(mask, np.where(inside, 0, IGNORED))
    return rows, columns


def test_stretch_fills_all_of_the_networks_input():
    image, mask = picture(20, 50), picture(20, 50, 1)
    resizing = Resizing((32, 64))
    expected = tf.round(tf.image.resize(image.astype(np.float32), [32, 64], antialias=True))
    np.testing.assert_array_equal(resizing.image(tf.constant(image)), expected)
    np.testing.assert_array_equal(resizing.mask(tf.constant(mask)), tf.image.resize(mask, [32, 64], method="nearest"))


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (100, 100, (0, 32), (16, 48)),
        (50, 200, (8, 24), (0, 64)),
        (64, 128, (0, 32), (0, 64)),
        (9, 3, (0, 32), (26, 37)),
    ],
)
def test_letterbox_keeps_the_aspect_ratio_and_is_centred(height, width, rows, columns):
    found = of_the_picture("letterbox", height, width, (32, 64))
    assert [(side[0], side[-1] + 1) for side in found] == [rows, columns]
    image = Resizing((32, 64), "letterbox").image(tf.constant(picture(height, width))).numpy()
    outside = np.ones((32, 64), bool)
    outside[slice(*rows), slice(*columns)] = False
    assert (image[outside] == GREY).all()
    assert (image[~outside] <= 100).all()


@settings(max_examples=40, derandomize=True)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["letterbox", "crop"]))
def test_logits_at_image_size_contain_no_padding(height, width, method):
    size = (32, 64)
    rows, columns = of_the_picture(method, height, width, size)
    assert abs((rows[0] + rows[-1]) - 31) <= 1
    assert abs((columns[0] + columns[-1]) - 63) <= 1
    if method == "crop":
        assert (len(rows), len(columns)) == (min(height, 32), min(width, 64))
    else:
        assert len(rows) == 32 or len(columns) == 64
        scale = min(32 / height, 64 / width)
        assert abs(len(rows) - max(height * scale, 1)) <= 0.5
        assert abs(len(columns) - max(width * scale, 1)) <= 0.5
    if method == "crop" and (height > 32 or width > 64):
        return
    inside = np.zeros((1, *size, 1), np.float32)
    inside[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 1
    back = Resizing(size, method).to_image_size(tf.constant(inside), tf.constant([height, width, 3]))
    assert back.shape == (1, height, width, 1)
    np.testing.assert_allclose(back, 1, rtol=1e-6)


def test_crop_keeps_the_scale():
    image = picture(41, 100)
    resizing = Resizing((32, 64), "crop")
    np.testing.assert_array_equal(resizing.image(tf.constant(image)), image[4:36, 18:82])
    small = picture(20, 31)
    np.testing.assert_array_equal(resizing.image(tf.constant(small))[6:26, 16:47], small)
    there = resizing.to_image_size(tf.cast(resizing.image(tf.constant(small)), tf.float32)[None], tf.constant([20, 31]))
    np.testing.assert_array_equal(there[0], small)


@pytest.mark.parametrize("method", ["stretch", "letterbox", "crop"])
def test_one_graph_resizes_images_of_any_size(method):
    resizing = Resizing((32, 64), method)
    specs = [tf.TensorSpec([None, None, channels], tf.uint8) for channels in (3, 1)]
    function = tf.function(lambda image, mask: (resizing.image(image), resizing.mask(mask)), input_signature=specs)
    image, mask = function(picture(1, 1), picture(1, 1, 1))
    assert (image.shape, mask.shape) == ((32, 64, 3), (32, 64, 1))
    assert (image.dtype, mask.dtype) == (tf.uint8, tf.uint8)
    pair = function(picture(40, 90), picture(40, 90, 1))
    for found, eager in zip(pair, (resizing.image(picture(40, 90)), resizing.mask(picture(40, 90, 1))), strict=True):
        np.testing.assert_array_equal(found, eager)
    assert "32 x 64" in resizing.describe()
