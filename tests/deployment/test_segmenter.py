"""`petseg.load`, `Segmenter` and `Segmentation`, and the commands for packed weights."""

import io
import json
import pickle
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import load_examples
from PIL import Image

import petseg
from petseg.classes import PETS
from petseg.config import DistributionConfig
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.deployment import export_command, prediction_command, segmentation, segmenter
from petseg.deployment.predictor import Predictor
from petseg.errors import CheckpointError, ConfigError, DataError, WorkDirectoryError
from petseg.runs import scoring


@pytest.fixture(scope="module")
def workdir(averaged_run, tmp_path_factory):
    """The work directory of a finished run with averaged weights."""
    return shutil.copytree(averaged_run, tmp_path_factory.mktemp("averaged") / "run")


@pytest.fixture(scope="module")
def loaded(workdir):
    return petseg.load(workdir)


@pytest.fixture(scope="module")
def photograph():
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((60, 45), Image.Resampling.BICUBIC))


def test_arrays_paths_and_pillow_images_give_the_same(loaded, photograph, tmp_path):
    Image.fromarray(photograph).save(tmp_path / "cat.png")
    path = tmp_path / "cat.png"
    pictures = [photograph, tf.constant(photograph), path, str(path), Image.fromarray(photograph)]
    found = loaded(pictures)
    assert [each.mask.tolist() for each in found] == [found[0].mask.tolist()] * len(pictures)
    one = loaded(photograph)
    np.testing.assert_array_equal(one.mask, found[0].mask)
    assert (one.mask.shape, one.mask.dtype) == ((45, 60), np.uint8)
    assert (one.probabilities.shape, one.probabilities.dtype) == ((45, 60, 3), np.float32)
    np.testing.assert_allclose(one.probabilities.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(one.mask, Predictor(loaded.model, PETS)(photograph).mask)


def test_overlay_cutout_and_repr_show_the_prediction(loaded, photograph):
    assert repr(loaded) == "Segmenter(32 x 32: pet, background, border)"
    found = loaded(photograph)
    assert np.asarray(found.overlay(0)).tolist() == photograph.tolist()
    assert np.asarray(found.overlay(1)).tolist() == PETS.palette[found.mask].tolist()
    cutout = np.asarray(found.cutout())
    np.testing.assert_array_equal(cutout[..., :3], photograph)
    np.testing.assert_allclose(cutout[..., 3] / 255, found.probabilities @ PETS.foreground, atol=3e-3)
    assert Image.open(io.BytesIO(found._repr_png_())).size == (60, 45)
    assert repr(found).startswith("Segmentation(60 x 45: pet ")


def test_averaged_weights_are_used_where_there_are_any(workdir, loaded, photograph):
    picture = photograph[:32, :32]  # the network's size: what is resized is not quite symmetric
    trained = petseg.load(workdir, ema=False)
    assert np.abs(loaded(picture).probabilities - trained(picture).probabilities).max() > 0
    flipped = petseg.load(workdir, flip_tta=True)
    mirrored = loaded(picture[:, ::-1]).probabilities[:, ::-1]
    either = (loaded(picture).probabilities + mirrored) / 2
    np.testing.assert_allclose(flipped(picture).probabilities, either, atol=1e-5)


def test_a_split_is_scored_as_in_training(workdir, loaded):
    scores = loaded.evaluate("test")
    step = json.loads((workdir / "best" / "best.json").read_text())["step"]
    results = json.loads((workdir / "results" / f"test-{step}.ema.json").read_text())
    assert scores["confusion_matrix"] == results["confusion_matrix"]
    assert scores["mean_iou"] == results["mean_iou"]
    assert (scores["step"], scores["split"]) == (step, "test")


def test_pairs_are_scored_at_their_own_size(workdir, loaded):
    examples = load_examples("synthetic_pets", size=32, data_dir=loaded.config.data.data_dir, split="test")
    data_set = tf.data.Dataset.from_tensor_slices((examples.images, examples.masks))
    scores = loaded.evaluate(data_set)
    assert scores["examples"] == len(examples)
    assert scores["confusion_matrix"] == loaded.evaluate("test")["confusion_matrix"]
    larger = [[half.repeat(2, 0).repeat(2, 1) for half in pair] for pair in data_set.as_numpy_iterator()]
    counted = np.sum(loaded.evaluate(larger)["confusion_matrix"])
    assert counted == 4 * np.sum(scores["confusion_matrix"])


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"got float32 \[4, 5, 3\]; must be uint8 .* \(image \* 255\)"),
        (np.full((4, 5, 3), 255.0), r"got float64 .*; for values in \[0, 255\]: image\.round\(\)\.astype\('uint8'\)$"),
        (np.zeros((4, 5, 2), np.uint8), r"got uint8 \[4, 5, 2\]; must be uint8 \[height, width, 3\] .*, or grey"),
        (np.zeros((4, 5), np.int64), r"got int64 \[4, 5\]; must be uint8 \[height, width, 3\] .*astype\('uint8'\)"),
        (np.zeros(5, np.uint8), r"got uint8 \[5\]; must be"),
        (np.zeros((0, 5), np.uint8), r"got uint8 \[0, 5\]; must be"),
        (
            np.zeros((3, 64, 80), np.uint8),
            r"got uint8 \[3, 64, 80\]; must be .*; with the channels first: np\.moveaxis",
        ),
        (np.zeros((2, 4, 5, 3), np.uint8), r"got uint8 \[2, 4, 5, 3\]; .* list\(images\)"),
        (np.zeros((0, 5, 3), np.uint8), r"got uint8 \[0, 5, 3\]"),
        (None, "got NoneType; must be an array, a path or a Pillow image"),
        (7, "got int; must be"),
        ("/nothing/there.jpg", r"/nothing/there.jpg: there is no such file; must be an image file"),
        ("/", "/: is a folder; must be an image file"),
        (__file__, r"test_segmenter\.py: cannot be read: "),
    ],
)
def test_invalid_images_are_refused_in_one_line(picture, message):
    with pytest.raises(DataError, match=message) as error:
        segmenter.as_array(picture)
    assert "\n" not in str(error.value)


def test_arrays_are_converted_like_pillow_images_of_the_same_pixels(photograph):
    grey = photograph[..., 0]
    transparent = np.dstack([photograph, grey])
    for array in (grey, grey[..., None], grey > 100, transparent, grey[:, ::-1]):
        picture = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
        np.testing.assert_array_equal(segmenter.as_array(array), segmenter.as_array(picture))
    np.testing.assert_array_equal(segmenter.as_array(grey), np.repeat(grey[..., None], 3, axis=-1))


def test_segmentations_can_be_compared_hashed_and_pickled(loaded, photograph):
    found, again, other = loaded([photograph, photograph, photograph[::-1]])
    assert found == again
    assert hash(found) == hash(again)
    assert found != other
    assert found != photograph.tolist()
    assert len({found, again, other}) == 2
    assert other in [found, other]
    assert pickle.loads(pickle.dumps(found)) == found


def test_probabilities_of_large_images_are_not_kept(workdir, loaded, photograph, monkeypatch):
    small = loaded(photograph)
    monkeypatch.setattr(segmentation, "MAX_KEPT_BYTES", 1000)
    for tile in (None, 32):
        many = petseg.load(workdir, tile=tile)
        large, also = many([photograph, photograph[:5, :5]])
        held = sum(each.nbytes for each in vars(large).values() if isinstance(each, np.ndarray))
        assert held <= 7 * large.mask.size  # the picture's 3 bytes, the class, the confidence, the foreground
        assert large.probabilities.shape == (45, 60, 3)
        np.testing.assert_array_equal(large.mask, large.probabilities.argmax(axis=-1))
        np.testing.assert_allclose(large.confidence, large.probabilities.max(axis=-1), atol=1e-3)
        np.testing.assert_array_equal(large.probabilities, large.probabilities)
        assert also.probabilities is also.probabilities  # small enough to be kept
        if tile is None:
            np.testing.assert_allclose(large.probabilities, small.probabilities, atol=1e-5)
            np.testing.assert_array_equal(np.asarray(large.cutout()), np.asarray(small.cutout()))
        sent = pickle.loads(pickle.dumps(large))
        assert sent == large
        with pytest.raises(DataError, match="too large to be kept in a pickled Segmentation"):
            assert sent.probabilities.size


def test_tile_0_predicts_the_whole_image(workdir, loaded, photograph):
    whole = petseg.load(workdir, tile=0)(photograph)
    np.testing.assert_array_equal(whole.probabilities, loaded(photograph).probabilities)
    for tile in (3, -1, (0, 0), (32, 3), [3, 3], (32, 32, 32), 32.5, True):
        with pytest.raises(ConfigError, match=r"--tile=.*: must be .*, or 0$"):
            petseg.load(workdir, tile=tile)


def test_invalid_pairs_are_refused(loaded, photograph):
    for mask in (np.zeros((3, 3), np.uint8), np.zeros((45, 60)), np.zeros((45, 60, 3), np.uint8)):
        with pytest.raises(DataError, match=r"mask: got .* must be integers \[45, 60\], class ids"):
            loaded.evaluate([(photograph, mask)])
    for pair in (photograph, {"image": photograph, "mask": photograph}, "ab"):
        with pytest.raises(DataError, match=r"^pair 0: got (ndarray|dict|str); must be an image and its mask"):
            loaded.evaluate([pair])
    ids = np.zeros(photograph.shape[:2], np.uint8)
    for image, mask, message in (
        (
            photograph,
            Image.fromarray(ids),
            "mask: got Image; must be an array of class ids, or the path of a",
        ),
        (photograph, [[1], [1, 2]], "mask: got list; must be"),
        (photograph / 255, ids, "image: got float64"),
        ("gone.jpg", "gone.png", "gone.jpg: cannot be read: No such file"),
    ):
        with pytest.raises(DataError, match=rf"^pair 1: {message}"):
            loaded.evaluate([(photograph, ids), (image, mask)])
    with pytest.raises(DataError, match=r"^dataset: got NoneType; must be pairs of image and mask, or a split$"):
        loaded.evaluate(None)
    with pytest.raises(DataError, match="holds no pairs"):
        loaded.evaluate([])


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (np.array([0, 1, 3], np.uint8), "3"),  # ids + 1, as in trimaps
        (np.array([0, 1, 258], np.int64), "258"),  # which as uint8 were 2
        (np.array([0, 1, -1], np.int32), "-1"),
        (np.array([254, 0, 1], np.uint16), "254"),
    ],
)
def test_masks_with_ids_of_no_class_are_refused(loaded, photograph, ids, found):
    right, wrong = (np.resize(each, photograph.shape[:2]) for each in (ids.clip(0, 2), ids))
    with pytest.raises(DataError, match=rf"^pair 1: mask: holds {found}, which is not a class, in \d+ pixels; must be"):
        loaded.evaluate([(photograph, right), (photograph, wrong)])


def test_masks_in_files_hold_the_values_of_the_data_set(loaded, photograph, tmp_path):
    ids = np.resize(np.array([0, 1, 2, 1, 255]), photograph.shape[:2]).astype(np.uint8)
    table = np.arange(256, dtype=np.uint8)
    table[:3] = [each.value for each in loaded.classes.members]
    Image.fromarray(table[ids]).save(tmp_path / "mask.png")
    by_path = loaded.evaluate([(photograph, tmp_path / "mask.png")])
    assert by_path["confusion_matrix"] == loaded.evaluate([(photograph, ids)])["confusion_matrix"]
    Image.fromarray(ids).save(tmp_path / "ids.png")
    with pytest.raises(DataError, match=rf"^pair 0: {tmp_path}/ids.png: holds value 0 in no class"):
        loaded.evaluate([(photograph, tmp_path / "ids.png")])
    # A mask that only fits the image as stored is turned with it, as in training.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(photograph)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.rot90(table[ids])).save(tmp_path / "turned_mask.png")
    of_files = loaded.evaluate([(tmp_path / "turned.png", str(tmp_path / "turned_mask.png"))])
    assert of_files["confusion_matrix"] == by_path["confusion_matrix"]


def test_class_ids_of_any_integer_type_score_the_same_and_255_is_ignored(loaded, photograph):
    mask = np.resize(np.array([0, 1, 2, 255, 1]), photograph.shape[:2])
    scores = [loaded.evaluate([(photograph, mask.astype(kind))]) for kind in (np.uint8, np.int64)]
    assert scores[0]["confusion_matrix"] == scores[1]["confusion_matrix"]
    assert np.sum(scores[0]["confusion_matrix"]) == (mask != 255).sum()


def test_pairs_without_a_labelled_pixel_are_refused(loaded, photograph):
    nothing = np.full(photograph.shape[:2], 255, np.uint8)
    with pytest.raises(DataError, match="none of its 2 masks has a labelled pixel"):
        loaded.evaluate([(photograph, nothing)] * 2)
    assert loaded.evaluate([(photograph, nothing), (photograph, nothing * 0)])["examples"] == 2


def test_a_split_that_was_trained_on_is_refused_unless_allowed(loaded):
    for split, count in (("train", 24), ("train[:3]", 3), ("test+train[:2]", 2)):
        with pytest.raises(DataError, match=rf"^dataset={re.escape(split)}: {count} of its images were trained on "):
            loaded.evaluate(split)
    assert loaded.evaluate("train[:3]", allow_training_images=True)["examples"] == 3


def test_sources_that_are_not_runs_are_refused(tmp_path, workdir):
    with pytest.raises(
        WorkDirectoryError, match=r"horses: must be a work directory, a file .* of a packaged model \(pets\)$"
    ):
        petseg.load("horses")
    for source in (None, 5, ["pets", None]):
        with pytest.raises(ConfigError, match=r"^source: got .*; must be a path, the name of a packaged model, or a"):
            petseg.load(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WorkDirectoryError, match="no run is here"):
        petseg.load(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="gone"):
        petseg.load(workdir, checkpoint="gone")
    with pytest.raises(ConfigError, match="--tile=3,3: must be"):
        petseg.load(workdir, tile=3)
    for given in ({"checkpoint": "latest"}, {"ema": False}):
        with pytest.raises(ConfigError, match=r"^(checkpoint='latest'|ema=False): must not come with pets, which is"):
            petseg.load("pets", **given)


def score_config(**values):
    return EvalConfig(ScoreConfig(**values), DistributionConfig(strategy="one_device"))


@pytest.mark.slow
def test_packed_weights_predict_score_and_export_as_the_run_does(workdir, loaded, photograph, tmp_path, capsys):
    exported = export_command.export(
        score_config(workdir=str(workdir), checkpoint="best", ema=True, export="weights", output_dir=str(tmp_path))
    )
    file = tmp_path / "weights.safetensors"
    assert exported[0].path == str(file)
    assert exported[0].mask_agreement >= 0.999
    packed = petseg.load(file)
    np.testing.assert_allclose(packed(photograph).probabilities, loaded(photograph).probabilities, atol=0.01)
    assert "data_dir" in json.dumps(json.loads((tmp_path / "model_card.json").read_text()))
    Image.fromarray(photograph).save(tmp_path / "cat.png")
    written = {"predict": str(tmp_path / "cat.png"), "output_dir": str(tmp_path / "masks")}
    (mask,) = prediction_command.predict(score_config(workdir=str(file), **written))
    np.testing.assert_array_equal(np.asarray(Image.open(mask)), packed(photograph).mask)
    (scores,) = scoring.evaluate(score_config(workdir=str(file), data_dir=str(loaded.config.data.data_dir)))
    assert scores["mean_iou"] == pytest.approx(loaded.evaluate("test")["mean_iou"], abs=0.02)
    assert "mean IoU" in capsys.readouterr().out
    where = {"data_dir": str(loaded.config.data.data_dir)}
    with pytest.raises(DataError, match="--split=train: 24 of its images were trained on"):
        scoring.evaluate(score_config(workdir=str(file), split="train", **where))
    with pytest.raises(DataError, match="dataset=train: 24 of its images were trained on"):
        packed.evaluate("train", **where)
    allowed = {"split": "train[:3]", "allow_training_images": True}
    native = scoring.evaluate(score_config(workdir=str(file), resolution="native", **allowed, **where))
    assert [each["examples"] for each in native] == [3, 3]


def test_packed_weights_are_one_checkpoint():
    asked = [{"checkpoint": "all"}, {"checkpoint": "runs/a/ckpt-1"}, {"compare": "other"}, {"csv": "x.csv"}]
    for flags in (*asked, {"watch": True}, {"ema": True}):
        for source in ({"pretrained": True}, {"workdir": "pets"}):
            with pytest.raises(ConfigError, match="pets: is one checkpoint with one kind of weights; must be a "):
                ScoreConfig(**source, **flags)
    with pytest.raises(ConfigError, match="--workdir=: must be the work directory of a run, or pass"):
        ScoreConfig()
    with pytest.raises(ConfigError, match="--workdir=run: "):
        ScoreConfig(workdir="run", pretrained=True)
