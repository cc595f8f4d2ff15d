"""A network of fixed input size on images of any size."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from petseg.evaluation.keras_runner import KerasRunner
from petseg.evaluation.tiled_inference import AnySizeModel
from petseg.models import encoders, inference, unet
from petseg.models.batch_norm_calibration import calibrate_batch_norm


@pytest.fixture(scope="module")
def model():
    encoder = encoders.build_encoder("tiny", image_size=(32, 64))
    model = unet.build_unet(
        image_size=(32, 64), num_classes=3, encoder=encoder, train_encoder=False, input_scaling="unit"
    )
    calibrate_batch_norm(encoder, tf.random.stateless_uniform([16, 32, 64, 3], seed=[0, 0]))
    return model


def photograph(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def make_model(model, *, tile=None, **options):
    return AnySizeModel(KerasRunner(model, **options), tile=tile)


def network_logits(model, images):
    return inference.logits(model, images).numpy()


def test_a_whole_image_is_stretched_to_the_input_size_and_its_logits_back(model):
    image = photograph(90, 120)
    found = make_model(model).probabilities(image)
    assert found.shape == (90, 120, 3)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    resized = tf.round(tf.image.resize(image.astype(np.float32), [32, 64], antialias=True))
    logits = network_logits(model, tf.clip_by_value(resized, 0, 255)[None])
    np.testing.assert_allclose(found, tf.nn.softmax(tf.image.resize(logits, [90, 120]))[0], atol=1e-5)


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
def test_an_image_of_the_input_size_is_not_resized(model, resize):
    image = photograph(32, 64)
    found = make_model(model, resize=resize).logits(image)
    np.testing.assert_allclose(found, network_logits(model, image[None])[0], atol=1e-4)


def test_letterbox_padding_is_cut_off_before_logits_are_resized(model):
    image = photograph(80, 80)
    there = np.full((1, 32, 64, 3), 128, np.float32)
    there[0, :, 16:48] = tf.round(tf.image.resize(image.astype(np.float32), [32, 32], antialias=True))
    expected = tf.image.resize(network_logits(model, np.clip(there, 0, 255))[:, :, 16:48], [80, 80])[0]
    np.testing.assert_allclose(make_model(model, resize="letterbox").logits(image), expected, atol=1e-4)


def test_with_crops_images_are_predicted_in_tiles_of_the_input_size(model):
    image = photograph(56, 112)
    found = make_model(model, resize="crop", tile=(32, 64)).probabilities(image)
    parts = tf.nn.softmax(network_logits(model, np.stack([image[:32, :64], image[24:, 48:]]))).numpy()
    np.testing.assert_allclose(found[:24, :48], parts[0, :24, :48], atol=1e-5)
    np.testing.assert_allclose(found[32:, 64:], parts[1, 8:, 16:], atol=1e-5)
    small = make_model(model, resize="crop", tile=(32, 64)).logits(photograph(20, 64))
    assert small.shape == (20, 64, 3)


@pytest.mark.parametrize(("resize", "flip_tta"), [("stretch", False), ("letterbox", True)])
def test_one_tile_that_covers_the_image_gives_the_prediction_of_the_whole_image(model, resize, flip_tta):
    image = photograph(90, 120)
    whole = make_model(model, resize=resize, flip_tta=flip_tta)
    tiled = make_model(model, resize=resize, flip_tta=flip_tta, tile=(90, 128))
    np.testing.assert_array_equal(tiled.probabilities(image), whole.probabilities(image))
    np.testing.assert_array_equal(tiled.logits(image), whole.logits(image))


def test_logits_of_tiled_images_are_logarithms_of_blended_probabilities(model):
    tiled, image = make_model(model, tile=(64, 48), flip_tta=True), photograph(90, 120)
    probabilities = tiled.probabilities(image)
    np.testing.assert_allclose(tf.nn.softmax(tiled.logits(image)), probabilities, atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    mirrored = tiled.probabilities(np.ascontiguousarray(image[:, ::-1]))
    np.testing.assert_allclose(mirrored, probabilities[:, ::-1], atol=1e-4)
