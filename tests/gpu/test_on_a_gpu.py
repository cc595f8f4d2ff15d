"""Tests that need a GPU: `pytest -m gpu` on a machine with an NVIDIA GPU that TensorFlow sees.

Each training is a subprocess, because devices are set up once per process. PETSEG_TEST_GPU_ON_CPU=1 runs them on a CPU
with the smallest sizes, to try the tests themselves without a GPU.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from petseg.runtime import gpus

ON_CPU = os.environ.get("PETSEG_TEST_GPU_ON_CPU") == "1"
SIZES = ["--image_size=32", "--batch_size=8"] if ON_CPU else ["--image_size=128", "--batch_size=16"]
BATCH_SIZE = 8 if ON_CPU else 16
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def device():
    """Skips without a GPU; else leaves its memory to the subprocesses."""
    if ON_CPU:
        return
    if not tf.config.list_physical_devices("GPU"):
        pytest.skip(gpus.warning() or "TensorFlow sees no GPU, and there is no NVIDIA driver")
    tf.config.set_visible_devices([], "GPU")


def flags_of(data_dir, workdir, *more):
    recipe = ["--encoder_weights=none", "--encoder_alpha=0.35", "--optimizer=sgd", "--learning_rate=0.01"]
    intervals = ["--epochs=0", "--summary_every=1", "--steps_per_loop=2", "--eval_every=1000"]
    where = ["--dataset=synthetic_pets", f"--data_dir={data_dir}", f"--workdir={workdir}"]
    return [*where, *SIZES, *recipe, *intervals, *more]


def start(*arguments, program=("train.py",)):
    command = [sys.executable, *program, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments, program=("train.py",)):
    """Runs a program to its end; returns its stdout and stderr."""
    process = start(*arguments, program=program)
    try:
        stdout, stderr = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert ("computes on 1 CPU" if ON_CPU else "computes on 1 GPU") in stderr
    return stdout, stderr


def logged(workdir, tag):
    """The values of a training scalar by step."""
    with open(workdir / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["run"], row["tag"]) == ("train", tag)]
    return {int(row["step"]): float(row["value"]) for row in rows}


def tensors(path):
    reader = tf.train.load_checkpoint(str(path))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


@pytest.mark.parametrize("jit", ["--nojit_compile", "--jit_compile"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_training_in_each_precision_with_and_without_xla(data_dir, tmp_path, precision, jit):
    steps = 4 if ON_CPU else 12
    run(*flags_of(data_dir, tmp_path, "--strategy=one_device", f"--precision={precision}", jit,
                  f"--train_steps={steps}"))  # fmt: skip
    losses = list(logged(tmp_path, "loss").values())
    assert len(losses) == steps
    finite = [loss for loss in losses if np.isfinite(loss)]  # float16 may skip steps at first
    assert len(finite) >= (1 if precision == "mixed_float16" else steps)
    assert 0 < finite[-1] < 2
    (device,) = json.loads((tmp_path / "config.json").read_text())["devices"][-1:]
    assert ("CPU" if ON_CPU else "GPU") in device
    results = json.loads((tmp_path / "results" / f"test-{steps}.json").read_text())
    assert np.isfinite(results["loss"])


def test_step_times_are_not_zero_and_not_longer_than_the_run(data_dir, tmp_path):
    steps = 6 if ON_CPU else 40
    began = time.perf_counter()
    run(*flags_of(data_dir, tmp_path, "--strategy=one_device", f"--train_steps={steps}"))
    took = time.perf_counter() - began
    medians = logged(tmp_path, "speed/step_time_median")
    speeds = logged(tmp_path, "speed/images_per_second")
    assert len(medians) == len(speeds) == steps
    assert min(medians.values()) > 0
    assert 0 < sum(BATCH_SIZE / speed for speed in speeds.values()) < took


def test_the_device_split_in_two_trains_as_one_replica(data_dir, tmp_path):
    found = {}
    for name, devices in (("one", "--strategy=one_device"), ("two", "--virtual_devices=2")):
        _, stderr = run(*flags_of(data_dir, tmp_path / name, devices, "--notensor_float_32", "--train_steps=20"))
        assert ("2 replicas" in stderr) == (name == "two")
        found[name] = list(logged(tmp_path / name, "loss").values())
    assert len(found["one"]) == 20
    np.testing.assert_allclose(found["two"], found["one"], rtol=1e-5 if ON_CPU else 1e-4)
    assert found["one"][-1] < found["one"][0]


# Trains with the flags in argv; at the third step, the images of the batch's second half are infinite.
OVERFLOW = """
import sys
import tensorflow as tf
from petseg.config import Config, command_line
from petseg.runs import train
from petseg.training.trainer import Trainer

genuine = Trainer.prepare

def prepare(self, batch, step):
    images, *rest = genuine(self, batch, step)
    hit = (step == 2) & (batch["position"] >= {half})
    return (tf.where(hit[:, None, None, None], float("inf"), images), *rest)

Trainer.prepare = prepare
command_line.run(train.train, Config, "")
"""


def test_an_overflow_on_one_of_two_virtual_replicas_is_skipped_by_both(data_dir, tmp_path):
    script = OVERFLOW.replace("{half}", str(BATCH_SIZE // 2))
    run(*flags_of(data_dir, tmp_path, "--virtual_devices=2", "--precision=mixed_float16", "--initial_loss_scale=256",
                  "--steps_per_loop=1", "--train_steps=5"), program=("-c", script))  # fmt: skip
    assert logged(tmp_path, "optimization/skipped_steps") == {1: 0, 2: 0, 3: 1, 4: 1, 5: 1}
    assert logged(tmp_path, "optimization/loss_scale") == {1: 256, 2: 256, 3: 128, 4: 128, 5: 128}
    losses = logged(tmp_path, "loss")
    assert [step for step, loss in losses.items() if not np.isfinite(loss)] in ([], [3])
    for name, value in tensors(tmp_path / "checkpoints" / "ckpt-5").items():
        assert np.asarray(value).dtype.kind != "f" or np.isfinite(value).all(), name


# Trains with the flags in argv, then prints the share of the GPU's memory in use.
MEMORY = """
import subprocess
from petseg.config import Config, command_line
from petseg.runs import train

def main(config):
    train.train(config)
    query = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits", "--id=0"]
    used, total = map(float, subprocess.run(query, capture_output=True, text=True, check=True).stdout.split(","))
    print("share:", used / total)

command_line.run(main, Config, "")
"""


@pytest.mark.skipif(ON_CPU or not shutil.which("nvidia-smi"), reason="asks nvidia-smi for the memory of a GPU")
def test_memory_grows_as_it_is_needed_unless_all_is_asked_for(data_dir, tmp_path):
    shares = {}
    for flag in ("--memory_growth", "--nomemory_growth"):
        flags = flags_of(data_dir, tmp_path / flag, "--strategy=one_device", flag, "--train_steps=2")
        stdout, _ = run(*flags, program=("-c", MEMORY))
        shares[flag] = float(stdout.split("share:")[1])
    assert shares["--memory_growth"] < 0.5 < shares["--nomemory_growth"]


def test_killed_and_resumed_it_ends_in_the_same_bits(data_dir, tmp_path):
    steps = 10 if ON_CPU else 200
    flags = ["--strategy=one_device", "--deterministic", "--ema_decay=0.9", "--augment=standard",
             f"--checkpoint_every={steps // 5}", "--keep_checkpoints=9", f"--train_steps={steps}"]  # fmt: skip
    run(*flags_of(data_dir, tmp_path / "whole", *flags))
    killed = start(*flags_of(data_dir, tmp_path / "killed", *flags))
    deadline = time.monotonic() + 600
    while not list((tmp_path / "killed" / "checkpoints").glob("ckpt-*.index")):
        assert time.monotonic() < deadline
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "checkpoints" / f"ckpt-{steps}.index").exists()
    _, stderr = run(*flags_of(data_dir, tmp_path / "killed", *flags))
    assert "resumed from" in stderr
    found, expected = (tensors(tmp_path / name / "checkpoints" / f"ckpt-{steps}") for name in ("killed", "whole"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_images_per_second_beside_model_fit(data_dir, tmp_path, record_property):
    """The loop reaches .9 of the speed of model.fit or more; --junitxml records both speeds, -s shows them."""
    rounds, steps = (1, 2) if ON_CPU else (3, 50)
    flags = flags_of(data_dir, tmp_path / "run", "--train_steps=1", "--summary_every=20", "--steps_per_loop=10")
    file = tmp_path / "numbers.json"
    asked = ["--measure=training", f"--rounds={rounds}", f"--steps={steps}", f"--output={file}"]
    environment = {**os.environ, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}  # the contestants share the GPU
    done = subprocess.run([sys.executable, "-m", "petseg.benchmark", *flags, *asked], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=1800)  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    rows = json.loads(file.read_text())["groups"]["training"]
    speeds = {row["title"]: float(np.median(row["images_per_second"])) for row in rows}
    for title, speed in speeds.items():
        record_property(title, speed)
        assert speed > 0
    if not ON_CPU:
        assert speeds["whole loop"] > 0.9 * speeds["model.fit"]
