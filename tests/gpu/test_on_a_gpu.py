"""`pytest -m gpu`: the report of `python -m petseg.benchmark --measure=gpu`, made once and checked part by part.

PETSEG_TEST_GPU_ON_CPU=1 makes it on a CPU at the smallest sizes, to try it without a GPU. PETSEG_TEST_GPU_REPORT names
a .md file that keeps it; PETSEG_TEST_DATA_DIR and PETSEG_TEST_ENCODER_WEIGHTS are used if they are set.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from conftest import ROOT

from petseg.runtime import gpu_diagnosis

ON_CPU = os.environ.get("PETSEG_TEST_GPU_ON_CPU") == "1"

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The rows of each part by its title."""
    if not ON_CPU:
        if not tf.config.list_physical_devices("GPU"):
            pytest.skip(gpu_diagnosis.warning() or "TensorFlow sees no GPU, and there is no NVIDIA driver")
        tf.config.set_visible_devices([], "GPU")  # leaves the memory to the report
    file = os.environ.get("PETSEG_TEST_GPU_REPORT") or str(tmp_path_factory.mktemp("report") / "gpu.md")
    known = {"data_dir": "PETSEG_TEST_DATA_DIR", "encoder_weights": "PETSEG_TEST_ENCODER_WEIGHTS"}
    flags = [f"--{flag}={os.environ[name]}" for flag, name in known.items() if os.environ.get(name)]
    command = ["-m", "petseg.benchmark", "--measure=gpu", f"--report={file}", *(["--smallest"] if ON_CPU else flags)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return {part["title"]: part["rows"] for part in json.loads(Path(file).with_suffix(".json").read_text())}


def test_it_computes_on_the_gpu(report):
    (devices,) = [row["value"] for row in report["Devices"] if row.get("what") == "devices"]
    assert devices.startswith("1 CPU" if ON_CPU else "1 GPU")


def test_exactness(report):
    for row in report["Exactness"]:
        assert row.get("held"), row


@pytest.mark.parametrize("part", ["Speed of steps", "Beside model.fit and a bare loop", "Input"])
def test_all_speeds_are_measured(report, part):
    for row in report[part]:
        assert row.get("images/s", 0) > 0, row


def test_the_loop_keeps_up_with_model_fit(report):
    speeds = {}
    for row in report["Beside model.fit and a bare loop"]:
        speeds.setdefault((row["recipe"], row["precision"]), {})[row["loop"]] = row["images/s"]
    for case, found in speeds.items():
        assert found["petseg, whole loop"] > (0 if ON_CPU else 0.9 * found["model.fit"]), case


def test_scores_are_reached(report):
    if "error" in report["Time to a score"][0]:
        pytest.skip(report["Time to a score"][0]["error"])
    assert ON_CPU or all(row["seconds"] for row in report["Time to a score"])
