"""A network of one size, on pictures of any size."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from petseg.evaluation.keras_runner import KerasRunner
from petseg.evaluation.tiled_inference import AnySizeModel
from petseg.models import encoders, inference, unet


@pytest.fixture(scope="module")
def model():
    encoder = encoders.build_encoder("tiny", image_size=(32, 64))
    model = unet.build_unet(
        image_size=(32, 64), num_classes=3, encoder=encoder, train_encoder=False, input_scaling="unit"
    )
    encoders.calibrate_batch_norm(encoder, tf.random.stateless_uniform([16, 32, 64, 3], seed=[0, 0]))
    return model


def photograph(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def any_size(model, *, tile=None, **options):
    return AnySizeModel(KerasRunner(model, **options), tile=tile)


def said_of(model, images):
    return inference.logits(model, images).numpy()


def test_a_whole_picture_is_stretched_and_its_logits_are_stretched_back(model):
    image = photograph(90, 120)
    found = any_size(model).probabilities(image)
    assert found.shape == (90, 120, 3)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    resized = tf.round(tf.image.resize(image.astype(np.float32), [32, 64], antialias=True))
    logits = said_of(model, tf.clip_by_value(resized, 0, 255)[None])
    np.testing.assert_allclose(found, tf.nn.softmax(tf.image.resize(logits, [90, 120]))[0], atol=1e-5)


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
def test_a_picture_of_the_networks_size_is_taken_as_it_is(model, resize):
    image = photograph(32, 64)
    found = any_size(model, resize=resize).logits(image)
    np.testing.assert_allclose(found, said_of(model, image[None])[0], atol=1e-4)


def test_in_a_letterbox_the_filling_has_no_part_in_what_comes_back(model):
    image = photograph(80, 80)
    there = np.full((1, 32, 64, 3), 128, np.float32)
    there[0, :, 16:48] = tf.round(tf.image.resize(image.astype(np.float32), [32, 32], antialias=True))
    expected = tf.image.resize(said_of(model, np.clip(there, 0, 255))[:, :, 16:48], [80, 80])[0]
    np.testing.assert_allclose(any_size(model, resize="letterbox").logits(image), expected, atol=1e-4)


def test_a_run_that_crops_goes_over_pictures_in_tiles_of_its_own_size(model):
    image = photograph(56, 112)
    found = any_size(model, resize="crop", tile=(32, 64)).probabilities(image)
    parts = tf.nn.softmax(said_of(model, np.stack([image[:32, :64], image[24:, 48:]]))).numpy()
    np.testing.assert_allclose(found[:24, :48], parts[0, :24, :48], atol=1e-5)
    np.testing.assert_allclose(found[32:, 64:], parts[1, 8:, 16:], atol=1e-5)
    small = any_size(model, resize="crop", tile=(32, 64)).logits(photograph(20, 64))
    assert small.shape == (20, 64, 3)


@pytest.mark.parametrize(("resize", "flip_tta"), [("stretch", False), ("letterbox", True)])
def test_one_tile_that_covers_the_picture_gives_what_the_whole_gives(model, resize, flip_tta):
    image = photograph(90, 120)
    whole = any_size(model, resize=resize, flip_tta=flip_tta)
    tiled = any_size(model, resize=resize, flip_tta=flip_tta, tile=(90, 128))
    np.testing.assert_array_equal(tiled.probabilities(image), whole.probabilities(image))
    np.testing.assert_array_equal(tiled.logits(image), whole.logits(image))


def test_the_logits_of_several_tiles_are_those_of_their_probabilities(model):
    tiled, image = any_size(model, tile=(64, 48), flip_tta=True), photograph(90, 120)
    probabilities = tiled.probabilities(image)
    np.testing.assert_allclose(tf.nn.softmax(tiled.logits(image)), probabilities, atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    mirrored = tiled.probabilities(np.ascontiguousarray(image[:, ::-1]))
    np.testing.assert_allclose(mirrored, probabilities[:, ::-1], atol=1e-4)
