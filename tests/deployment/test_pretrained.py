"""The packaged model: what it scores, and what it makes of pictures that it has never seen."""

import itertools

import numpy as np
import programs_in_forks
import pytest
from conftest import data_config
from PIL import Image

import petseg
from petseg.data import loading
from petseg.data.drawings.animal_drawing import draw
from petseg.runs import packed_run

pytestmark = pytest.mark.slow
MIB = 2**20


@pytest.fixture(scope="module")
def pets():
    return petseg.load("pets")


@pytest.fixture
def photograph(tmp_path):
    Image.fromarray(draw(np.random.default_rng(3)).image).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_it_is_small_and_has_a_card():
    packed = packed_run.PackedRun.open(packed_run.packed_file("pets"))
    assert packed.path.stat().st_size <= 6 * MIB
    assert packed.path.with_suffix(".onnx").stat().st_size <= 6 * MIB
    assert packed.weights == "averaged"
    assert (packed.config.data.dataset, packed.config.data.train_split) == ("oxford_iiit_pet", "train")
    assert packed.card["scores"]["mean_iou"] >= 0.802
    assert petseg.Config.preset("best").model.decoder == packed.config.model.decoder


def test_its_scores_on_photographs_are_those_of_its_card(pets, real_data_dir):
    pairs = loading.native_pairs(data_config("oxford_iiit_pet", 128, real_data_dir), "test[:100]", pets.classes)
    scores = pets.evaluate([(image, mask) for image, mask in pairs])
    assert scores["mean_iou"] >= 0.81
    assert scores["iou"]["border"] >= 0.59


def test_on_drawings_it_is_nowhere_near_random(pets, data_dir):
    pairs = loading.native_pairs(data_config("synthetic_pets", 128, data_dir), "test", pets.classes)
    drawings = list(itertools.islice(pairs, 8))
    scores = pets.evaluate(drawings)
    pixels = np.concatenate([mask.ravel() for _, mask in drawings])
    background = np.mean(pixels == pets.classes.names.index("background"))
    assert scores["accuracy"] >= background + 0.1  # it was trained on photographs only
    assert scores["iou"]["pet"] >= 0.3


def test_the_command_needs_no_run_and_both_runtimes_agree(photograph, tmp_path):
    for runtime in ("tensorflow", "auto"):
        flags = [f"--predict={photograph}", f"--output_dir={tmp_path / runtime}", f"--runtime={runtime}"]
        result = programs_in_forks.run("eval.py", "--pretrained", *flags, "--cutout", "--probabilities=npz")
        assert result.returncode == 0, result.stderr
        assert (tmp_path / runtime / "photo.cutout.png").is_file()
    full, half = (np.load(tmp_path / name / "photo.probabilities.npz") for name in ("tensorflow", "auto"))
    np.testing.assert_allclose(half["probabilities"], full["probabilities"], atol=0.1)  # of a drawing, hard to classify
    masks = [np.asarray(Image.open(tmp_path / name / "photo.mask.png")) for name in ("tensorflow", "auto")]
    ranked = np.sort(full["probabilities"], axis=-1)
    clear = ranked[..., -1] - ranked[..., -2] > 0.2
    assert clear.mean() >= 0.95
    np.testing.assert_array_equal(masks[0][clear], masks[1][clear])
