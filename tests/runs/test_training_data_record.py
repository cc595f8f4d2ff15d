"""The record of training data: training images are not scored, changed data is refused."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from conftest import tiny_flags
from PIL import Image

import petseg
from petseg.config import Config, command_line
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.data import catalog, overlaps
from petseg.data.catalog import DataSet
from petseg.errors import DataError, WorkDirectoryError
from petseg.runs import scoring, train
from petseg.runs.training_data_record import TrainingData

LISTS = {"train": "abcdef", "val": "gh", "trainval": "abcdefgh", "test": "ij"}


def save_pair(root, name, seed=0, ids=(0, 1, 2)):
    """Writes a picture of 32 x 32 pixels and its mask, in columns of class ids."""
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)).save(
        root / f"images/{name}.jpg"
    )
    Image.fromarray(np.resize(np.array(ids, np.uint8), 32)[None].repeat(32, 0)).save(root / f"masks/{name}.png")


def write_lists(root, **lists):
    for split, names in lists.items():
        (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def config_of(root, workdir, *more):
    flags = ["--dataset=folder", f"--cache_dir={root.parent / 'cache'}", "--train_split=trainval", "--train_steps=2"]
    return command_line.parse(["train.py", *tiny_flags(root, workdir), *flags, "--batch_size=4", *more], Config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in the layout of PASCAL VOC, and a finished run on its `trainval`."""
    folder = tmp_path_factory.mktemp("voc")
    for kind in ("images", "masks"):
        (folder / "mine" / kind).mkdir(parents=True)
    for i, name in enumerate("abcdefghij"):
        save_pair(folder / "mine", name, i)
    write_lists(folder / "mine", **LISTS)
    train.train(config_of(folder / "mine", folder / "run"))
    return folder


@pytest.fixture
def root(finished, tmp_path):
    """A copy of both; returns the folder of the pictures, beside which the work directory is."""
    for name in ("mine", "run", "cache"):
        shutil.copytree(finished / name, tmp_path / name)  # with the times of files, so that nothing is read again
    return tmp_path / "mine"


def score(root, split, **options):
    where = {"data_dir": str(root), "cache_dir": str(root.parent / "cache")}
    return scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(root.parent / "run"), split=split, **where, **options)))


def go_on(root, *flags):
    return train.train(config_of(root, root.parent / "run", *flags))


def test_a_split_that_holds_images_of_the_training_split_is_refused_with_their_names(root):
    for split, shared in (("val", r"2 of .* \(images/g.jpg, images/h.jpg\)"), ("train", r"6 .*images/c.jpg, \.\.\.\)")):
        with pytest.raises(DataError, match=f"--split={split}: {shared}; .* --allow_training_images"):
            score(root, split)
    (results,) = score(root, "val[:1]", allow_training_images=True)
    assert results["examples"] == 1
    (results,) = score(root, "test")
    assert results["examples"] == 2


@pytest.mark.parametrize("as_what", ["a", "new"])
def test_an_image_that_was_moved_or_copied_after_training_is_refused(root, as_what):
    if as_what == "new":
        save_pair(root, "new", ids=(2, 1))  # the picture of a; its mask is no matter
    write_lists(root, trainval="bcdefgh", train="bcdef", test=["i", "j", as_what])
    with pytest.raises(DataError, match=rf"--split=test: 1 of .* \(images/{as_what}.jpg\); a score"):
        score(root, "test")
    with pytest.raises(DataError, match=r"--split=test\[2:\]: 1 of|--split=test\[:1\]: 1 of"):
        score(root, "test[2:]" if as_what == "new" else "test[:1]")
    with pytest.raises(DataError, match="--split=test: 1 of"):  # the run that is compared with may have been trained on
        score(root, "test", compare=str(root.parent / "run"))


def test_an_image_that_came_into_the_training_split_after_training_may_be_scored(root):
    write_lists(root, trainval="abcdefghi")
    (results,) = score(root, "test")
    assert results["examples"] == 2


def test_runs_without_a_data_record_are_compared_by_the_present_splits(root):
    (root.parent / "run" / "training_data.npz").unlink()
    with pytest.raises(DataError, match="--split=val: 2 of its images were trained on"):
        score(root, "val")
    write_lists(root, trainval="bcdefgh", test="ija")
    (results,) = score(root, "test")
    assert results["examples"] == 3


def test_training_warns_of_shared_images_by_name(root, caplog):
    data_set = catalog.open_data(config_of(root, "unused").data)
    overlaps.warn_of_shared_examples(data_set, "trainval", "test")
    assert not caplog.messages
    overlaps.warn_of_shared_examples(data_set, "trainval", "val+test")
    (message,) = caplog.messages
    assert message.startswith(
        "--eval_split=val+test: 2 of its 4 examples are in --train_split=trainval too (images/g.jpg, images/h.jpg); "
    )


def add(root):
    save_pair(root, "new", 99)
    write_lists(root, trainval=[*"abcdefgh", "new"])


def remove(root):
    for file in ("images/c.jpg", "masks/c.png"):
        (root / file).unlink()
    write_lists(root, trainval="abdefgh", train="abdef")


def replace(root):
    save_pair(root, "c", 99)


def repeat(root):
    save_pair(root, "new", 0)
    write_lists(root, trainval=[*"abcdefgh", "new"])


def rename(root):
    for folder, ending in (("images", "jpg"), ("masks", "png")):
        (root / folder / f"a.{ending}").rename(root / folder / f"z.{ending}")
    write_lists(root, trainval="bcdefghz", train="bcdefz")


def relabel(root):
    save_pair(root, "c", 2, ids=(1, 0))


def add_to_test(root):
    add(root)
    write_lists(root, trainval="abcdefgh", test=["i", "j", "new"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add, r"--train_split=trainval of --data_dir=\S+mine: 1 picture was added \(images/new.jpg\)\. "),
        (remove, "--train_split=trainval of .*: 1 picture was removed"),
        (replace, r"--train_split=trainval of .*: 1 picture was added \(images/c.jpg\), 1 picture was removed"),
        (repeat, "--train_split=trainval of .*: it had 8 examples, and has now 9"),
        (rename, "--train_split=trainval of .*: the pictures were renamed, which changes their order"),
        (relabel, r"--train_split=trainval of .*: 1 mask was changed \(images/c.jpg\)"),
        (add_to_test, r"--eval_split=test of .*: 1 picture was added \(images/new.jpg\)"),
    ],
)
def test_resuming_with_changed_data_is_refused(root, change, message):
    change(root)
    workdir = root.parent / "run"
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(WorkDirectoryError, match=f"^--workdir={workdir}: .*{message}") as caught:
        go_on(root, "--train_steps=4")
    remedy = f"or start a new run from its weights with another --workdir and --init_from={workdir}"
    assert str(caught.value).endswith(f"Restore the data, {remedy}")
    assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


@pytest.mark.slow
def test_a_run_resumes_with_equal_images_in_another_folder_with_other_times(root, tmp_path):
    shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    os.utime(tmp_path / "elsewhere" / "images" / "a.jpg", (1, 1))
    results = go_on(root, f"--data_dir={tmp_path / 'elsewhere'}", "--train_steps=3")
    assert results["step"] == 3


@pytest.mark.slow
def test_a_run_with_init_from_inherits_the_record_of_seen_images(root, caplog):
    add(root)
    write_lists(root, trainval=[*"bcdefgh", "new"], test="ija")
    workdir = root.parent / "second"
    with caplog.at_level("WARNING", logger="petseg"):
        train.train(config_of(root, workdir, f"--init_from={root.parent / 'run'}"))
    (warning,) = [message for message in caplog.messages if "--init_from" in message]
    assert warning.startswith("--eval_split=test: 1 of its 3 examples were trained on by --init_from=")
    with pytest.raises(DataError, match=r"--split=test: 1 of its images were trained on .*\(images/a.jpg\)"):
        scoring.evaluate(EvalConfig(ScoreConfig(workdir=str(workdir))))


def test_training_images_are_refused_by_the_python_api_and_for_packed_weights(root, tmp_path):
    loaded = petseg.load(root.parent / "run")
    with pytest.raises(DataError, match=r"^dataset=val: 2 of .* allow_training_images=True scores them nevertheless"):
        loaded.evaluate("val", data_dir=str(root))
    assert loaded.evaluate("val", data_dir=str(root), allow_training_images=True)["examples"] == 2


def test_tfds_data_sets_are_recorded_by_size_without_reading_examples(tiny_config, monkeypatch):
    monkeypatch.setattr(DataSet, "raw_examples", None)
    data_set = catalog.open_data(tiny_config.data)
    now = TrainingData.of(data_set, tiny_config.data)
    assert now.changes_to(now, data_set, tiny_config.data) == ""
    grown = dataclasses.replace(now, examples={"train_split": 30, "eval_split": 10})
    assert now.changes_to(grown, data_set, tiny_config.data).endswith("it had 24 examples, and has now 30")
    other = dataclasses.replace(now, data_set="synthetic_pets/3.0.0")
    message = "the data set was synthetic_pets/2.0.0, and is now synthetic_pets/3.0.0"
    assert now.changes_to(other, data_set, tiny_config.data) == message
