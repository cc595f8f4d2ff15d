"""Wrong flags, files, data sets and work directories: one line, the documented exit code, nothing changed."""

import hashlib
import json
import os
import re
import runpy
import shutil
import sys

import pytest
import tensorflow_datasets as tfds
from conftest import ROOT, tiny_flags

from petseg.config import CONFIG_FORMAT
from petseg.data.synthetic_pets import SyntheticPets
from petseg.runs.work_directory import WorkDirectory


@pytest.fixture
def place(data_dir, finished_run, tmp_path):
    """A folder with the files that the invalid flags below name."""
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.copytree(data_dir / "synthetic_pets", tmp_path / "cut" / "synthetic_pets")
    for shard in (tmp_path / "cut").glob("**/*.tfrecord*"):
        os.truncate(shard, shard.stat().st_size // 2)
    (tmp_path / "file").write_text("a text")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("a thesis")
    (tmp_path / "wrong.cfg").write_text("--no_such_flag=3\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


def call(script, *arguments):
    """Runs an entry script in this process; returns its exit code."""
    before = sys.argv
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    return 0


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


FLAGS = [
    ("--strategy=foo", "--strategy=foo: must be one of auto, one_device"),
    ("--image_size=100", "--image_size=100: must be a whole number of at least 32, divisible by 32"),
    ("--image_size=64.5", "--image_size=64.5: must be a whole number"),
    ("--epochs=0 --train_steps=0", "--epochs=0 and --train_steps=0: exactly one of the two must be above 0"),
    ("--epochs=0", "exactly one"),
    ("--class_weights=1,2", "--class_weights=1,2: there are 2; must be 3, of pet, background, border"),
    ("--class_weights=1,nan,1", "must be comma-separated numbers"),
    ("--batch_size=many", "--batch_size=many: must be a whole number of at least 1"),
    ("--batch_size=-8", "--batch_size=-8: must be a whole number of at least 1"),
    ("--learning_rate=inf", "--learning_rate=inf: must be a number above 0"),
    ("--crop_area=0", "--crop_area=0.0: must be a number above 0 and at most 1"),
    ("--rotation=-0.5", "--rotation=-0.5: must be a number of at least 0 and at most 180"),
    ("--loss=hinge", "--loss=hinge: must be one of cross_entropy, focal, dice, cross_entropy_dice"),
    ("--label_smoothing=1", "must be a number of at least 0 and below 1"),
    ("--weight_decay=0.1", "--weight_decay=0.1: must be 0 with --optimizer=adam, above 0 with --optimizer=adamw"),
    ("--drop_at=0.75,0.5", "--drop_at=0.75,0.5: must be increasing comma-separated numbers between 0 and 1"),
    ("--warmup_steps=6 --train_steps=6", "--warmup_steps=6: must be less than the 6 steps of the run"),
    ("--unfreeze_encoder_at=2", "--unfreeze_encoder_at=2: must be 0 without --train_encoder"),
    ("--encoder_learning_rate_factor=0.1", "--encoder_learning_rate_factor=0.1: must be 1 without --train_encoder"),
    ("--loss=dice --label_smoothing=0.1", "--label_smoothing=0.1: must be 0 with --loss=dice"),
    ("--ema_decay=1", "must be a number of at least 0 and below 1"),
    (
        "--init_from={place}/none",
        "--init_from={place}/none: is neither the work directory of a run, nor a checkpoint, nor",
    ),
    ("--optimizer=adagrad", "--optimizer=adagrad: must be one of adam, adamw, sgd, lion, muon, "),
    ("--precision=float8", "--precision=float8: must be one of float32"),
    ("--clip_norm=-1", "--clip_norm=-1.0: must be a number of at least 0"),
    ("--micro_batches=3", "--micro_batches=3: must divide the 8 examples"),
    ("--on_nonfinite=ignore", "--on_nonfinite=ignore: must be one of halt, skip, restore"),
    ("--checkpoint_every_minutes=-1", "must be a number of at least 0"),
    ("--encoder_weights=imagenet", "--encoder_weights=imagenet: must be none or a file with --encoder=tiny"),
    ("--keep_checkpoints=0", "must be a whole number of at least 1"),
    (
        "--encoder=mobilenet_v2 --encoder_weights=imagenet --encoder_alpha=0.7",
        "--encoder_alpha=0.7: with --encoder_weights=imagenet must be one of",
    ),
    ("--train_encoder=perhaps", "must be true or false"),
    ("--batchsize=3", "Unknown command line flag 'batchsize'"),
    ("--flagfile={place}/none.cfg", "{place}/none.cfg"),
    ("--flagfile={place}/wrong.cfg", "Unknown command line flag 'no_such_flag'"),
    ("train", "train: every argument is a flag"),
    ("--strategy=tpu", "--strategy=tpu: TensorFlow finds no TPU here"),
    ("--strategy=central_storage", "--strategy=central_storage: "),
    (
        "--strategy=multi_worker_mirrored",
        "the environment must describe a cluster, by TF_CONFIG or as Slurm's srun does",
    ),
    ("--strategy=mirrored --cross_device_ops=nccl", "--cross_device_ops=nccl: there must be GPUs"),
    ("--num_devices=2", "--num_devices=2: there are 1"),
    ("--cache=ram", "--cache=ram: must be one of memory, disk, none"),
    (
        "--data_service=grpc://localhost:5050",
        "with it --cache must be disk, in a --cache_dir that the service sees too",
    ),
    ("--on_bad_example=ignore --cache=disk", "with it --cache must be none"),
    ("--cache=disk --data_service=localhost:5050", "must be grpc://HOST:PORT, or several"),
    ("--cache=disk --data_service=grpc://localhost:70000", "must be grpc://HOST:PORT, or several"),
    ("--cache=disk --data_service=grpc://a:1,grpc://a:1", "several different ones"),
    ("--cache=disk --data_service=grpc://a:1,", "must be grpc://HOST:PORT, or several"),
]
DATA = [
    ("--dataset=no_such_pets", "no data set no_such_pets"),
    ("--dataset=mnist --data_dir={place}/empty", "mnist: petseg does not know its classes; --classes must be a file"),
    ("--dataset=synthetic_pets:9.0.0", "no data set synthetic_pets:9.0.0"),
    ("--train_split=validation", "no split validation; it must be one of test (10 examples), train (24 examples)"),
    ("--train_split=train[", "no split train["),
    ("--train_split=train[:0]", "split train[:0] is empty"),
    ("--eval_split=train[90:100]", "split train[90:100]"),
    ("--batch_size=25", "--batch_size=25: must be at most 24, the number of training examples"),
    ("--data_dir={place}/cut", "cannot be read"),
    ("--encoder_weights={place}/none.h5", "--encoder_weights={place}/none.h5: no such file"),
    (
        "--cache=disk --cache_dir={place}/file",
        "--cache_dir={place}/file: {place}/file: cannot be written: File exists",
    ),
    ("--cache=disk --cache_dir={place}/file/below", "cannot be written: Not a directory"),
    ("--encoder_weights={place}/file", "--encoder_weights={place}/file: does not fit this encoder"),
]


@pytest.fixture
def offline(monkeypatch):
    """What a machine without a network does, without waiting for its time-outs."""

    def refuse(self, *arguments, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)


def refused(capsys, code, message, script, *arguments, place):
    """Calls a script that must answer in one line, and must not touch anything."""
    before = contents(place)
    assert call(script, *arguments) == code
    captured = capsys.readouterr()
    *log, line = [line for line in captured.err.splitlines() if line.strip()]
    assert line.startswith(f"{script}: error: ")
    assert message in line
    for other in log:  # what a program may say before: what it decodes, what it skips
        assert re.search("MiB of memory|^skipped checkpoint|^changed: |is not under .*: preparing it", other), other
    assert captured.out == ""
    assert contents(place) == before


@pytest.mark.parametrize(("flags", "message"), [*FLAGS, *DATA])
def test_wrong_flags_and_data_are_refused_in_one_line(capsys, offline, data_dir, place, flags, message):
    flags = [flag.replace("{place}", str(place)) for flag in flags.split(" ")]
    message = message.replace("{place}", str(place))
    refused(capsys, 2, message, "train.py", *tiny_flags(data_dir, place / "new"), *flags, place=place)


def test_a_data_set_without_masks_is_refused(capsys, offline, data_dir, place, monkeypatch):
    def info(self):
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"image": tfds.features.Image()}))

    monkeypatch.setattr(SyntheticPets, "_info", info)
    message = "--mask_feature=segmentation_mask: must be an image feature"
    refused(capsys, 2, message, "train.py", *tiny_flags(data_dir, place / "new"), place=place)  # fmt: skip


def rewrite(file, change):
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def newer(run):
    rewrite(run / "config.json", lambda record: record.update(format=CONFIG_FORMAT + 1))


def unknown_key(run):
    rewrite(run / "config.json", lambda record: record["config"]["data"].update(colour="red"))


def wrong_value(run):
    rewrite(run / "config.json", lambda record: record["config"]["data"].update(batch_size="eight"))


def garbled(run):
    (run / "config.json").write_bytes(b"\xff\x00{")


def damaged_checkpoints(run):
    for file in (run / "checkpoints").glob("*.index"):
        os.truncate(file, 10)


def other_model(run):
    for file in (run / "best").glob("ckpt-*"):
        for step in (2, 4):
            shutil.copy(file, run / "checkpoints" / f"ckpt-{step}{file.suffix}")


RUNS = [
    (newer, "", f"has format {CONFIG_FORMAT + 1}; this petseg reads format {CONFIG_FORMAT}"),
    (unknown_key, "", "unknown key 'colour'"),
    (wrong_value, "", "batch_size"),
    (garbled, "", "not a config that can be read"),
    (damaged_checkpoints, "", "holds no checkpoint that can be read, only damaged ones"),
    (other_model, "--train_steps=6", "cannot be restored"),
    (None, "--batch_size=4", "--batch_size was 8, is now 4"),
    (None, "--image_size=64 --seed=3", "--image_size was '32', is now '64'; --seed was 0, is now 3"),
    (None, "--train_encoder", "--train_encoder was False, is now True"),
]


@pytest.mark.parametrize(("harm", "flags", "message"), RUNS)
def test_work_directories_that_cannot_be_resumed_are_refused(capsys, data_dir, place, harm, flags, message):
    if harm:
        harm(place / "run")
    flags = [*tiny_flags(data_dir, place / "run"), "--train_steps=4", *flags.split()]
    refused(capsys, 2, message, "train.py", *flags, place=place)


@pytest.mark.parametrize(
    ("workdir", "message"),
    [("file", "is a file; must be a folder"), ("foreign", "holds other files"), ("file/below", "cannot be written to")],
)
def test_other_folders_are_refused_as_work_directories(capsys, data_dir, place, workdir, message):
    refused(capsys, 2, message, "train.py", *tiny_flags(data_dir, place / workdir), place=place)


def test_a_locked_work_directory_is_refused(capsys, data_dir, place):
    with WorkDirectory(place / "run").locked():
        refused(capsys, 2, "another process is training here", "train.py", *tiny_flags(data_dir, place / "run"),
                "--train_steps=6", place=place)  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "must be the work directory of a run, or pass --pretrained"),
        ("--workdir={place}/empty", "no run is here"),
        ("--workdir={place}/run --checkpoint={place}/run/ckpt-9", "there is no such checkpoint"),
        ("--workdir={place}/run --split=nowhere", "no split nowhere"),
        ("--workdir={place}/run --split=train", "of its images were trained on"),
        ("--workdir={place}/run --batch_size=-1", "must be a whole number of at least 0"),
    ],
)
def test_wrong_flags_of_eval_are_refused(capsys, place, flags, message):
    flags = [flag.replace("{place}", str(place)) for flag in flags.split()]
    refused(capsys, 2, message, "eval.py", *flags, place=place)


@pytest.mark.parametrize("which", ["latest", "best"])
def test_eval_refuses_a_run_without_checkpoints(capsys, place, which):
    for folder in ("checkpoints", "best"):
        shutil.rmtree(place / "run" / folder)
    refused(capsys, 2, f"--checkpoint={which}: there is no checkpoint", "eval.py", f"--workdir={place}/run",
            f"--checkpoint={which}", place=place)  # fmt: skip
