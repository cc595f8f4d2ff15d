"""Resizing without TensorFlow gives TensorFlow's results, except for the rounding of sums."""

import tracemalloc

import numpy as np
import pytest

from petseg.data.numpy_resizing import NumpyResizing
from petseg.data.resizing import Resizing

SIZES = [(90, 130), (31, 47), (400, 37), (64, 96), (20, 300), (1, 1)]


@pytest.mark.parametrize("method", ["stretch", "letterbox", "crop"])
def test_images_are_resized_as_by_tensorflow_within_one_level(method):
    size = (64, 96)
    for height, width in SIZES:
        image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
        found, expected = NumpyResizing(size, method).image(image), Resizing(size, method).image(image).numpy()
        assert found.dtype == expected.dtype
        differences = np.abs(found.astype(int) - expected)
        assert differences.max() <= 1
        assert differences.mean() < 1e-3


@pytest.mark.parametrize("method", ["stretch", "letterbox", "crop"])
def test_logits_are_resized_as_by_tensorflow(method, monkeypatch):
    monkeypatch.setattr("petseg.data.numpy_resizing.VALUES", 5000)  # so that it comes in several parts
    size, logits = (64, 96), np.random.default_rng(2).normal(size=(64, 96, 5)).astype(np.float32)
    for height, width in SIZES:
        if method == "crop" and (height > size[0] or width > size[1]):
            continue
        parts = list(NumpyResizing(size, method).to_image_size(logits, (height, width, 3)))
        found = np.moveaxis(np.concatenate(parts, axis=1), 0, -1)
        expected = Resizing(size, method).to_image_size(logits[None], np.int32([height, width]))[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert max(part.size for part in parts) <= max(5000, 5 * width)


def test_a_large_image_is_not_converted_to_floats_as_a_whole():
    image = np.zeros((2000, 3000, 3), np.uint8)
    tracemalloc.start()
    NumpyResizing((128, 128)).image(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < image.size  # as floats it would be four times its size
