"""eval.py: details, native resolution, comparison, --watch and --csv."""

import csv
import json
import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import NUM_TEST, random_examples, tiny_flags
from PIL import Image
from programs_in_forks import Program, run

from petseg.classes import PETS
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.data import loading
from petseg.errors import CheckpointError, ConfigError, DataError
from petseg.evaluation import metrics
from petseg.evaluation.evaluation import Evaluation
from petseg.runs import building, checkpoints, comparison, group_scoring, scoring, watch_checkpoints
from petseg.runs.scorer import CheckpointScores
from petseg.runs.work_directory import WorkDirectory
from petseg.training import confusion_matrix


@pytest.fixture(scope="module")
def trained(finished_run, averaged_run, tmp_path_factory):
    """Two finished runs of four steps, with checkpoints at 2 and 4, at different learning rates."""
    folder = tmp_path_factory.mktemp("trained")
    return [WorkDirectory(shutil.copytree(run, folder / run.name)) for run in (finished_run, averaged_run)]


def score(workdir, **options):
    return scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(workdir.path), **options)))


def probabilities(workdir, *, flip=False):
    """Probabilities of the newest checkpoint for the test images, computed without the evaluator."""
    config = workdir.load_config()
    examples = loading.load(config.data, "test")
    model = building.build_model(config, PETS)
    checkpoints.restore_model(str(workdir.checkpoints / "ckpt-4"), model=model)
    images = examples.images.astype(np.float32)
    found = tf.nn.softmax(model(images, training=False)).numpy()
    if flip:
        found = (found + tf.nn.softmax(model(images[:, :, ::-1], training=False)).numpy()[:, :, ::-1]) / 2
    return examples, found


def test_detailed_scores_match_the_predictions(trained):
    (results,) = score(trained[0], batch_size=4)
    examples, found = probabilities(trained[0])
    labels, predictions = examples.masks[..., 0], found.argmax(-1)
    valid = np.ones(labels.shape, bool)
    outlines = metrics.boundary_counts(labels, predictions, valid, 3, 1).numpy().sum(0)
    expected = dict(zip(PETS.names, metrics.boundary_f_scores(outlines), strict=True))
    assert results["boundary_f"] == pytest.approx(expected, nan_ok=True)
    calibration = metrics.calibration_counts(found.max(-1), predictions == labels, valid).numpy()
    assert results["calibration_error"] == pytest.approx(metrics.calibration_error(calibration), rel=1e-4)
    matrices = confusion_matrix.confusion_matrices(labels, predictions, valid, 3).numpy()
    assert results["image_iou_percentiles"]["50"] == pytest.approx(np.median(metrics.mean_iou(matrices)))
    low, high = results["mean_iou_interval"]
    assert low < results["mean_iou"] < high
    assert sum(row["examples"] for row in results["groups"]["label"].values()) == NUM_TEST
    assert json.loads((trained[0].results / "test-4.json").read_text())["boundary_f"].keys() == set(PETS.names)


@pytest.mark.parametrize("flip", [pytest.param(False, marks=pytest.mark.slow), True])
def test_native_resolution_scores_against_the_original_masks(trained, flip, capsys):
    small, native = score(trained[0], resolution="native", batch_size=4, flip_tta=flip)
    _, found = probabilities(trained[0], flip=flip)
    config = trained[0].load_config()
    masks = [mask for _, mask in loading.native_pairs(config.data, "test")]
    assert {mask.shape for mask in masks} != {(32, 32, 1)}
    expected = np.zeros((3, 3), np.int64)
    for mask, logits in zip(masks, np.log(found), strict=True):
        resized = tf.image.resize(logits[None], mask.shape[:2]).numpy().argmax(-1)[0]
        np.add.at(expected, (mask[..., 0], resized), 1)
    # Half a dozen pixels whose two best classes are equal to the last bit may fall either way.
    assert np.abs(np.array(native["confusion_matrix"]) - expected).sum() <= 12
    assert np.sum(native["confusion_matrix"]) == sum(mask.size for mask in masks)
    assert np.sum(small["confusion_matrix"]) == NUM_TEST * 32 * 32
    printed = capsys.readouterr().out
    assert "test at 32 x 32, step 4" in printed
    assert "test at native resolution, step 4" in printed
    variant = "flip." if flip else ""
    assert (trained[0].results / f"test-4.{variant}native.json").exists()


def test_flip_tta_averages_the_two_probabilities(trained):
    (results,) = score(trained[0], flip_tta=True)
    examples, found = probabilities(trained[0], flip=True)
    labels = examples.masks[..., 0]
    chosen = np.take_along_axis(found, labels[..., None].astype(int), -1)
    assert results["loss"] == pytest.approx(-np.log(chosen).mean(), rel=1e-5)
    expected = (
        confusion_matrix.confusion_matrices(labels, found.argmax(-1), np.ones(labels.shape, bool), 3).numpy().sum(0)
    )
    assert np.abs(np.array(results["confusion_matrix"]) - expected).sum() <= 4
    plain = json.loads((trained[0].results / "test-4.json").read_text())
    assert plain["loss"] != results["loss"]


def test_logit_adjustment_divides_the_probabilities_by_the_class_weights(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"--logit_adjustment: .* must be a run with --class_weights"):
        score(trained[0], logit_adjustment=True)
    weighted = variant(trained[0], tmp_path / "weighted")
    record = json.loads(weighted.config_file.read_text())
    weights = [0.1, 1.9, 1.0]
    weighted.config_file.write_text(json.dumps({**record, "class_weights": weights}))
    (results,) = score(weighted, logit_adjustment=True)
    examples, found = probabilities(trained[0])
    assert results["accuracy"] == pytest.approx(((found / weights).argmax(-1) == examples.masks[..., 0]).mean())
    assert results["weights"] == "trained-adjusted"
    assert (weighted.results / "test-4.adjusted.json").is_file()


def test_csv_has_one_row_per_image(trained, tmp_path):
    (results,) = score(trained[0], csv=str(tmp_path / "images.csv"))
    with open(tmp_path / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == NUM_TEST
    assert {row["label"] for row in rows} == {"Cat", "Dog"}
    median = np.median([float(row["mean_iou"]) for row in rows])
    assert median == pytest.approx(results["image_iou_percentiles"]["50"])
    with pytest.raises(ConfigError, match="its folder does not exist"):
        score(trained[0], csv=str(tmp_path / "missing" / "images.csv"))


def test_all_checkpoints_are_scored_oldest_first(trained):
    first, second = score(trained[0], checkpoint="all")
    assert (first["step"], second["step"]) == (2, 4)
    assert second["loss"] == pytest.approx(score(trained[0])[0]["loss"])


@pytest.mark.slow
def test_another_precision_has_its_own_results_file(trained):
    (results,) = score(trained[0], precision="mixed_bfloat16")
    (plain,) = score(trained[0])
    assert results["loss"] != plain["loss"]
    assert results["loss"] == pytest.approx(plain["loss"], rel=0.02)
    assert (trained[0].results / "test-4.mixed_bfloat16.json").exists()


def test_two_runs_are_compared_on_the_same_images(trained, capsys):
    (results,) = score(trained[0], compare=str(trained[1].path))
    comparison = results["comparison"]
    (other,) = score(trained[1])
    assert comparison["difference"] == pytest.approx(results["mean_iou"] - other["mean_iou"])
    low, high = comparison["interval"]
    assert low <= comparison["difference"] <= high
    assert "mean IoU, first minus second" in capsys.readouterr().out
    assert comparison["other"] == str(trained[1].checkpoints / "ckpt-4")
    assert Image.open(trained[0].figures / "comparison.png").width > 500


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"names": ("a", "c", "d")},
            "the two runs must have the same images; names in pets/1.0.0, test differ",
        ),
        (
            {"origin": "dogs/1.0.0, test"},  # whose files have no names, and so the same numbers
            "must have the same data set, to pair their images; got pets/1.0.0, test and dogs/1.0.0, test",
        ),
        ({"origin": "pets/1.1.0, test"}, "got pets/1.0.0, test and pets/1.1.0, test"),
    ],
)
def test_runs_on_different_images_are_not_compared(other, message):
    examples = as_named(origin="pets/1.0.0, test")
    comparison.check_pairing(examples, examples)
    with pytest.raises(DataError, match=message):
        comparison.check_pairing(examples, as_named(**{"origin": "pets/1.0.0, test"} | other))


def as_named(**attributes):
    """Three examples with other names or origin."""
    examples = random_examples(3)
    for name, value in attributes.items():
        setattr(examples, name, value)
    return examples


def variant(workdir, folder, *, classes=None, **data):
    """A copy of a run with other sizes, masks or classes in its record; the weights fit all."""
    shutil.copytree(workdir.path, folder)
    record = json.loads(workdir.config_file.read_text())
    record["config"]["data"].update(data)
    record["classes"] = classes or record["classes"]
    (folder / "config.json").write_text(json.dumps(record))
    return WorkDirectory(folder)


def classes_with(**values):
    """The classes of pets with other values."""
    content = PETS.to_dict()
    for each in content["classes"]:
        each["value"] = values.get(each["name"], each["value"])
    return content


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image_size": "64"}, "the two runs were scored at 32 x 32 and 64 x 64 pixels, .*--resolution=native"),
        ({"resize": "letterbox"}, "the masks of the two runs differ, as with another --resize, .*--resolution=native"),
        ({"resize": "crop"}, "the masks of the two runs differ, as with another --resize, .*--resolution=native"),
        (
            {"classes": {"classes": [{**each, "name": each["name"] + "s"} for each in PETS.to_dict()["classes"]]}},
            "the two runs must have the same classes; got pet, background, border and pets, backgrounds, borders",
        ),
    ],
)
def test_runs_with_different_true_masks_are_not_compared(trained, tmp_path, data, message):
    other = variant(trained[1], tmp_path / "other", **data)
    with pytest.raises(DataError, match=f"--compare: {message}"):
        score(trained[0], compare=str(other.path))


def scored(*digests):
    """A checkpoint that was scored against masks with such digests, at one resolution after the other."""
    evaluations = [Evaluation(0.5, np.ones((2, 3, 3), np.int64), mask_digests=np.array(each)) for each in digests]
    return CheckpointScores("run/ckpt-4", evaluations, [{"resolution": "some"} for _ in evaluations], [], [])


def test_runs_are_compared_at_resolutions_with_identical_masks():
    assert comparison.paired_resolutions([scored([1, 2], [3, 4])] * 2) == [0, 1]
    assert comparison.paired_resolutions([scored([1, 2], [3, 4]), scored([1, 9], [3, 4])]) == [1]
    with pytest.raises(DataError, match=r"--compare: the masks of the runs differ.*--resolution=native"):
        comparison.paired_resolutions([scored([1, 2]), scored([1, 2]), scored([1, 3])])
    with pytest.raises(DataError, match=r"--workdir: .* different masks, also at native resolution; .* same values"):
        comparison.paired_resolutions([scored([1, 2], [3, 4]), scored([1, 2, 5], [3, 5])], flag="workdir")


@pytest.mark.slow
def test_runs_of_different_sizes_are_compared_at_native_resolution_only(trained, tmp_path, capsys):
    other = variant(trained[1], tmp_path / "other", image_size="64")
    small, native = score(trained[0], compare=str(other.path), resolution="native")
    assert "comparison" not in small
    _, its_native = score(other, resolution="native")
    assert native["comparison"]["difference"] == pytest.approx(native["mean_iou"] - its_native["mean_iou"])
    printed = capsys.readouterr().out
    assert "at native resolution: mean IoU, first minus second" in printed
    assert "at 32 x 32: mean IoU, first minus second" not in printed


@pytest.mark.slow
def test_masks_that_are_read_differently_differ_at_native_resolution_too(trained, tmp_path):
    swapped = variant(trained[1], tmp_path / "swapped", classes=classes_with(pet=2, background=1))
    for resolution in ("model", "native"):
        with pytest.raises(DataError, match=r"--compare: the .*masks"):
            score(trained[0], compare=str(swapped.path), resolution=resolution)


@pytest.mark.slow
def test_runs_of_one_group_must_have_the_same_true_masks(trained, tmp_path, capsys):
    other = variant(trained[1], tmp_path / "other", image_size="64")
    both = f"{trained[0].path},{other.path}"
    with pytest.raises(DataError, match=r"--workdir: the two runs were scored at 32 x 32 and 64 x 64 pixels"):
        group_scoring.evaluate(EvalConfig(ScoreConfig(workdir=both)))
    with pytest.raises(DataError, match=r"--compare: the two runs were scored at 64 x 64 and 32 x 32 pixels"):
        group_scoring.evaluate(
            EvalConfig(ScoreConfig(workdir=str(other.path), compare=f"{trained[0].path},{trained[1].path}"))
        )
    capsys.readouterr()
    results = group_scoring.evaluate(
        EvalConfig(ScoreConfig(workdir=both, compare=str(trained[1].path), resolution="native"))
    )
    assert ["comparison" in each for each in results] == [False, True, False, True]
    assert "at 32 x 32\n" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_sample_of_a_comparison_does_not_depend_on_the_order_of_runs(trained, tmp_path):
    other = variant(trained[1], tmp_path / "other")
    record = json.loads(other.config_file.read_text())
    record["config"]["runtime"]["seed"] = 5
    other.config_file.write_text(json.dumps(record))
    (one,) = score(trained[0], compare=str(other.path), eval_examples=4)
    (two,) = score(other, compare=str(trained[0].path), eval_examples=4)
    assert one["sample"] == two["sample"]
    (low, high), mirrored = one["comparison"]["interval"], two["comparison"]["interval"]
    assert mirrored == [-high, -low]


def test_a_comparison_refuses_training_images_of_either_run(trained, tmp_path):
    other = variant(trained[1], tmp_path / "other", train_split="test")
    with pytest.raises(DataError, match=r"--split=test: .* were trained on"):
        score(trained[0], compare=str(other.path))


@pytest.mark.slow
def test_scoring_caches_examples_as_the_run_or_flags_say(trained, array_record_dir, tmp_path, monkeypatch):
    shutil.copytree(trained[0].path, tmp_path / "run")
    record = json.loads(trained[0].config_file.read_text())
    record["config"]["data"].update(
        cache="disk",
        cache_dir=str(tmp_path / "a"),
        data_service="grpc://localhost:1",  # which is not asked for batches
    )
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    run, used, scored = WorkDirectory(tmp_path / "run"), [], []

    def watched(name):
        genuine = getattr(loading, name)
        monkeypatch.setattr(loading, name, lambda *args, **options: (used.append(name), genuine(*args, **options))[1])

    for name in ("_in_memory", "_on_disk", "OnDemandExamples"):
        watched(name)
    records = {"cache": "none", "data_dir": str(array_record_dir)}
    for options in ({}, records, {"cache": "memory"}, {"cache_dir": str(tmp_path / "b")}):
        scored += score(run, **options)
    assert used == ["_on_disk", "OnDemandExamples", "_in_memory", "_on_disk"]
    assert all(results["confusion_matrix"] == scored[0]["confusion_matrix"] for results in scored)
    assert len(list((tmp_path / "a").iterdir())) == len(list((tmp_path / "b").iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"watch": True, "checkpoint": "best"}, "--watch and --checkpoint=best"),
        ({"compare": "a,b.safetensors"}, "--compare=a,b.safetensors: is a file of packed weights"),
        ({"compare": "other", "checkpoint": "all"}, "--compare=other: compares one checkpoint"),
    ],
)
def test_contradictory_flags_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ScoreConfig(workdir="run", **options)


def test_scoring_without_a_checkpoint_is_refused(trained, tmp_path):
    shutil.copy(trained[0].config_file, tmp_path / "config.json")
    for which in ("latest", "best", "all"):
        with pytest.raises(CheckpointError, match=f"--checkpoint={which}: there is no checkpoint in .* yet"):
            score(WorkDirectory(tmp_path), checkpoint=which)


@pytest.mark.slow
def test_watching_scores_each_checkpoint_of_a_training_process_once(data_dir, tmp_path):
    workdir = tmp_path / "run"
    watcher = Program("eval.py", f"--workdir={workdir}", "--watch", "--watch_interval=0.2", "--split=test[:5]")
    flags = [*tiny_flags(data_dir, workdir), "--checkpoint_every=5", "--keep_checkpoints=1", "--train_steps=40"]
    trainer = run("train.py", *flags, "--eval_every=100", "--histogram_every=100")
    assert trainer.returncode == 0, trainer.stderr
    stdout, stderr = watcher.communicate(timeout=120)
    assert watcher.returncode == 0, stderr
    scored = [int(line.split("step ")[1].split(":")[0]) for line in stdout.splitlines() if line.startswith("test[:5]")]
    assert scored == sorted(set(scored))
    assert scored[-1] == 40  # those that vanish before they can be read are left out, the last one stays
    assert f"{workdir} is complete" in stderr
    assert (workdir / "results" / "test.start-5-40.json").exists()


def test_watching_skips_deleted_checkpoints_and_times_out(trained, monkeypatch, caplog):
    genuine = checkpoints.restore_model

    def vanish(path, **objects):
        if path.endswith("ckpt-2"):
            raise CheckpointError(f"checkpoint {path}: cannot be restored: gone")
        return genuine(path, **objects)

    monkeypatch.setattr(checkpoints, "restore_model", vanish)
    monkeypatch.setattr(watch_checkpoints, "last_step", lambda run: 10)
    began = time.monotonic()
    with caplog.at_level("INFO", logger="petseg"):
        found = score(trained[0], watch=True, watch_interval=0.1, watch_timeout=1.0)
    assert [results["step"] for results in found] == [4]
    assert any("ckpt-2: cannot be restored: gone" in message for message in caplog.messages)
    assert caplog.messages[-1].endswith("no new checkpoint for 1 s")
    assert time.monotonic() - began < 60
