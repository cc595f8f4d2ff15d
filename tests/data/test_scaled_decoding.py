"""JPEGs that are decoded only as large as a training needs them."""

import io

import numpy as np
import pytest
import tensorflow as tf
from conftest import as_array_records, data_config, load_examples, replicas
from PIL import Image
from test_loading import png, write_data_set

from petseg.classes import IGNORED, PETS
from petseg.config import DataConfig
from petseg.config.image_spec import PLAIN
from petseg.data import example_decoding, input_pipeline, loading
from petseg.data.example_decoding import ImageDecoding
from petseg.data.images import Bands
from petseg.data.resizing import GREY, Resizing
from petseg.errors import ConfigError, DataError

SIZES = ((250, 333), (64, 64), (63, 200), (300, 90), (32, 32), (20, 500), (129, 127), (256, 256))
DECODE = {"split": "train", "classes": PETS, "for_training": True}


def photograph(height, width):
    """Soft shapes and a little noise: JPEG changes noise alone beyond recognition."""
    rows, columns = np.mgrid[:height, :width] / 20
    waves = np.stack([np.sin(rows), np.cos(columns), np.sin(rows + columns)], axis=-1)
    noise = np.random.default_rng(height * width).normal(0, 4, waves.shape)
    return (128 + 80 * waves + noise).clip(0, 255).astype(np.uint8)


def jpeg(height, width):
    buffer = io.BytesIO()
    Image.fromarray(photograph(height, width)).save(buffer, "JPEG", quality=90)
    buffer.seek(0)
    return buffer


def trimap(height, width):
    return png(np.random.default_rng(0).integers(1, 4, (height, width), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of JPEGs of many sizes, and a PNG."""
    examples = [(jpeg(*size), trimap(*size)) for size in SIZES]
    examples.append((png(photograph(100, 100)), trimap(100, 100)))
    folder = tmp_path_factory.mktemp("photographs")
    write_data_set(folder, examples)
    return folder


def load(folder, **more):
    return loading.load(data_config("handmade_pets", "32,64", folder, **more), **DECODE)


@pytest.fixture(scope="module")
def both(folder):
    """Decoded whole, and only as large as needed."""
    return {decode: load(folder, decode=decode) for decode in ("full", "scaled")}


@pytest.mark.parametrize("method", ["stretch", "letterbox"])
@pytest.mark.parametrize("target", [(32, 64), (96, 96), (128, 32)])
def test_the_largest_divisor_that_keeps_the_target_size_is_used(method, target):
    resizing = Resizing(target, method)
    ratios = set()
    for size in SIZES:
        image, own_size, ratio = example_decoding.decode_reduced(
            tf.constant(jpeg(*size).read()), ImageDecoding(Bands("uint8", 3), PLAIN), resizing
        )
        needed = resizing.resized_size(tf.constant(size)).numpy()
        height, width = image.shape[:2]
        assert tuple(own_size.numpy()) == size
        ratio = int(ratio)
        assert (height, width) == (-(-size[0] // ratio), -(-size[1] // ratio))
        assert ratio == 1 or min(height - needed[0], width - needed[1]) >= 0
        assert ratio == 8 or -(-size[0] // (2 * ratio)) < needed[0] or -(-size[1] // (2 * ratio)) < needed[1]
        ratios.add(ratio)
    assert len(ratios) > 1


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_scaled_images_match_those_decoded_at_full_size(folder, resize):
    whole, scaled = (load(folder, resize=resize, decode=decode) for decode in ("full", "scaled"))
    np.testing.assert_array_equal(scaled.masks, whole.masks)
    differences = np.abs(scaled.images.astype(int) - whole.images).mean(axis=(1, 2, 3))
    shrunk = [i for i, size in enumerate(SIZES) if size[0] >= 64 and size[1] >= 128]
    assert (differences[shrunk] > 0).all()
    assert differences.max() < 2  # 4 if the last rows moved the others
    assert differences[-1] == 0  # the PNG
    filling = (scaled.masks == IGNORED)[..., 0]
    assert filling.any() == (resize == "letterbox")
    assert (scaled.images[filling] == GREY).all()


def test_full_decoding_resizes_with_antialiasing(both):
    for size, image in zip(SIZES, both["full"].images, strict=False):
        pixels = tf.cast(tf.io.decode_jpeg(jpeg(*size).read(), 3, dct_method="INTEGER_ACCURATE"), tf.float32)
        resized = tf.round(tf.image.resize(pixels, [32, 64], antialias=True))
        np.testing.assert_array_equal(image, tf.clip_by_value(resized, 0, 255))


def test_the_disk_cache_keeps_full_and_scaled_decoding_apart(folder, both, tmp_path):
    assert (both["full"].images != both["scaled"].images).any()
    for decode in ("full", "scaled", "full"):
        found = load(folder, cache="disk", cache_dir=str(tmp_path), decode=decode)
        images, masks = found.read(range(len(found)))
        np.testing.assert_array_equal(images, both[decode].images)
        np.testing.assert_array_equal(masks, both[decode].masks)


def test_batches_without_a_cache_are_the_same_bits_in_every_run_and_on_any_number_of_replicas(folder, both, tmp_path):
    examples = load(as_array_records("handmade_pets", folder, tmp_path), cache="none", decode="scaled")
    for devices in (1, 2):
        strategy, ids = replicas(devices), []
        batches = input_pipeline.distributed_training_batches(
            strategy, examples, batch_size=4, seed=1, first_step=0, last_step=4
        )
        for batch in batches:
            parts = (strategy.experimental_local_results(batch[key]) for key in ("example_id", "image", "mask"))
            chosen, images, masks = (np.concatenate([part.numpy() for part in each]) for each in parts)
            np.testing.assert_array_equal(images, both["scaled"].images[chosen])
            np.testing.assert_array_equal(masks, both["full"].masks[chosen])
            ids += chosen.tolist()
        assert len(ids) == 16


def test_evaluation_decodes_at_full_size(folder, both):
    scaled = load_examples("handmade_pets", "train", "32,64", str(folder), decode="scaled")
    np.testing.assert_array_equal(scaled.images, both["full"].images)


def test_a_truncated_file_is_refused(tmp_path):
    half = jpeg(250, 333).read()
    write_data_set(tmp_path, [(io.BytesIO(half[: len(half) // 2]), trimap(250, 333))])
    with pytest.raises(DataError, match=r"example 0.*cannot be decoded"):
        load(tmp_path, decode="scaled")


def test_scaled_decoding_is_refused_without_jpegs_or_with_crops(tmp_path):
    write_data_set(tmp_path, [(png(photograph(100, 100)), trimap(100, 100))])
    with pytest.raises(DataError, match=r"--decode=scaled: .*none of the first 1 images is a JPEG.*must be full"):
        load(tmp_path, decode="scaled")
    with pytest.raises(ConfigError, match=r"--decode=scaled: must be full with --resize=crop"):
        DataConfig(decode="scaled", resize="crop")
