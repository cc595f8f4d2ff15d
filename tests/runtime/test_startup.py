import subprocess
import sys

import pytest
import tensorflow as tf
from conftest import ROOT

from petseg.runtime import startup

# What stands for TensorFlow's libraries, which write to file descriptor 2 while they load.
NOISE = """
import os, sys
from petseg.runtime import startup
NOISE = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n"
    "I0000 00:00:1 1 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.\\n"
    "E0000 00:00:1 1 cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)\\n"
    "E0000 00:00:1 1 env.cc:1] no space for anything\\n"
    "a warning of Python's\\n"
)
with startup.without_greetings():
    os.write(2, NOISE.encode())
    {inside}
print("after", file=sys.stderr)
"""


def what_is_written(inside):
    command = [sys.executable, "-c", NOISE.replace("{inside}", inside)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_greetings_are_hidden_and_the_rest_is_shown():
    assert what_is_written("pass") == (
        0,
        "E0000 00:00:1 1 env.cc:1] no space for anything\na warning of Python's\nafter\n",
    )


def test_a_failed_start_shows_everything():
    code, stderr = what_is_written("raise ImportError('no such library')")
    assert code == 1
    assert "failed call to cuInit" in stderr
    assert stderr.endswith("ImportError: no such library\n")


def test_output_before_a_crash_is_not_lost():
    code, stderr = what_is_written("os.abort()  # as TensorFlow does on a CPU that it was not built for")
    assert code < 0
    assert "no space for anything" in stderr


def test_without_stderr_nothing_is_hidden():
    script = "import os; os.close(2)\nfrom petseg.runtime import startup\nwith startup.without_greetings(): print('in')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "in\n")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("E0000 00:00:1 1 cuda_fft.cc:467] Unable to register cuFFT factory\n", False),
        ("W0000 00:00:1 1 computation_placer.cc:177] computation placer already registered\n", False),
        ("E0000 00:00:1 1 file_system.cc:1] no such file\n", True),
        ("Exception ignored in: <function>\n", True),
    ],
)
def test_errors_that_are_not_about_gpus_are_shown(line, shown):
    assert (startup.worth_showing(line) == line) == shown


@pytest.mark.slow
def test_tensorflow_loads_without_its_greetings_and_keras_without_scikit_learn_which_can_still_be_imported():
    pytest.importorskip("sklearn")
    script = """
import gc, sys
from petseg.runtime import startup
startup.load_tensorflow()
assert "keras" in sys.modules and not [name for name in sys.modules if name.split(".")[0] == "sklearn"]
assert gc.get_threshold()[0] > 10_000
import sklearn.metrics
assert sklearn.metrics.accuracy_score([0, 1], [0, 1]) == 1
startup.load_tensorflow()
assert sys.modules["sklearn"] is sklearn
import tensorflow as tf
tf.config.set_logical_device_configuration(  # comes too late once TensorFlow runs
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
assert len(tf.config.list_logical_devices("CPU")) == 2
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("error", [None, RuntimeError("initialized"), ValueError("virtual devices configured")])
def test_tensorflow_takes_gpu_memory_as_it_needs_it_unless_it_already_runs(monkeypatch, error):
    asked = []

    def set_memory_growth(device, on):
        asked.append((device, on))
        if error:
            raise error

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0", "GPU:1"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", set_memory_growth)
    startup.load_tensorflow()
    assert asked == [("GPU:0", True), ("GPU:1", True)]
