"""Whole runs on folders with weight maps."""

import dataclasses

import numpy as np
import pytest
from conftest import changed
from PIL import Image
from short_trainings import assert_equal, variables

import petseg
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.data.drawings import drawn_folders
from petseg.data.drawings.drawn_folders import WriteConfig
from petseg.errors import ConfigError, WorkDirectoryError
from petseg.runs import checkpoint_files, scoring, train

SCORES = ("mean_iou", "accuracy", "iou", "confusion_matrix", "mean_iou_interval", "image_iou_percentiles", "boundary_f")


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """Drawn animals with weight maps of 16 bits."""
    folder = tmp_path_factory.mktemp("weights") / "animals"
    drawn_folders.write(WriteConfig(write=str(folder), num_train=8, num_test=4))
    for i, file in enumerate(sorted(folder.glob("masks/*/*.png"))):
        with Image.open(file) as mask:
            size = mask.size[::-1]
        write_map(folder, file, np.random.default_rng(i).integers(0, 65536, size, np.uint16))
        write_map(folder, file, np.full(size, 255, np.uint8), "ones")
    return folder


def write_map(folder, mask_file, numbers, kind="weights"):
    path = folder / kind / mask_file.relative_to(folder / "masks")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers).save(path)


@pytest.fixture
def config(small_config, animals, tmp_path):
    data = {"dataset": "folder", "data_dir": str(animals), "cache_dir": str(tmp_path / "cache"), "batch_size": 4}
    return small_config.changed(data=data, augmentation={"augment": "strong"}, loss={"loss_normalization": "weights"})


def weighted(config, kind="weights", **more):
    return changed(config, "data", weight_files=f"{kind}/{{split}}/{{name}}.png", **more)


def trained(config, workdir):
    """Scores and the newest checkpoint."""
    results = train.train(changed(config, "runtime", workdir=str(workdir)))
    return results, variables(checkpoint_files.newest(workdir / "checkpoints"))


@pytest.mark.slow
def test_weight_maps_change_loss_and_training_and_maps_of_ones_nothing(config, tmp_path):
    plain, weights = trained(config, tmp_path / "plain")
    ones, same = trained(weighted(config, "ones"), tmp_path / "ones")
    assert_equal(weights, same)
    assert ones == plain
    other, others = trained(weighted(config), tmp_path / "weighted")
    assert other["loss"] != plain["loss"]
    assert any((value != others[name]).any() for name, value in weights.items())


@pytest.mark.slow
def test_an_interrupted_weighted_run_ends_in_the_same_bits_in_every_cache(config, same_build, tmp_path):
    results, weights = trained(weighted(config), tmp_path / "memory")
    for cache in ("disk", "none"):
        again = weighted(config, cache=cache)
        trained(changed(again, "schedule", train_steps=2), tmp_path / cache)
        found, others = trained(again, tmp_path / cache)
        assert found == results
        assert_equal(weights, others)
    with pytest.raises(
        WorkDirectoryError, match=r"cannot be resumed with other data: .*8 masks were changed, or their"
    ):
        trained(weighted(config, "ones"), tmp_path / "none")


@pytest.mark.slow
def test_scores_count_pixels_by_weight_if_asked(config, tmp_path, capsys):
    results, _ = trained(changed(weighted(config), "loss", class_weights="1,2,4"), tmp_path / "run")
    run = ScoreConfig(workdir=str(tmp_path / "run"), resolution="native", allow_code=True)
    plain, native = scoring.evaluate(EvalConfig(run))
    assert plain["mean_iou"] == results["mean_iou"]
    assert plain["loss"] == pytest.approx(results["loss"], rel=1e-6)
    ones = "ones/{split}/{name}.png"
    same = scoring.evaluate(EvalConfig(dataclasses.replace(run, weight_files=ones, score_weights=True)))
    for one, other in zip((plain, native), same, strict=True):
        assert {key: one[key] for key in SCORES} == {key: other[key] for key in SCORES}
        assert one["loss"] != other["loss"]
    (unweighted,) = scoring.evaluate(EvalConfig(dataclasses.replace(run, resolution="model", weight_files="none")))
    assert unweighted["loss"] == same[0]["loss"]
    network = petseg.load(tmp_path / "run", checkpoint="latest", allow_code=True)
    for given, expected in (({}, plain), ({"weight_files": "none"}, unweighted), ({"weight_files": ones}, same[0])):
        assert network.evaluate("test", **given)["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    weighed = scoring.evaluate(EvalConfig(dataclasses.replace(run, score_weights=True)))
    counted = network.evaluate("test", score_weights=True)
    assert counted["confusion_matrix"] == weighed[0]["confusion_matrix"]
    with pytest.raises(ConfigError, match=r"^weight_files='', weight_feature='', score_weights=True: pairs have no"):
        network.evaluate([], score_weights=True)
    for one, other in zip((plain, native), weighed, strict=True):
        assert one["mean_iou"] != other["mean_iou"]
        assert np.sum(other["confusion_matrix"]) == pytest.approx(np.sum(one["confusion_matrix"]) / 2, rel=0.1)
    assert "pixels counted by weight" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "run" / "results").glob("*native*"))[1].count("weighted")
