"""Why TensorFlow sees no GPU on a machine that has one."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import tensorflow as tf

DRIVER_VERSION = Path("/proc/driver/nvidia/version")
REMEDY = "pip install -e '.[cuda]'"
SECONDS = 120
QUESTION = "import tensorflow as tf; tf.config.list_physical_devices('GPU')"
# The lines in which TensorFlow says why, the most telling first.
REASONS = (
    re.compile(r"Could not load dynamic library.*"),
    re.compile(r"failed call to cuInit.*"),
    re.compile(r"Cannot dlopen some GPU libraries"),
    re.compile(r"Could not find cuda drivers"),
    re.compile(r"(kernel|library|driver) version .* does not match.*"),
)


def warning() -> str:
    """One line that says why TensorFlow sees no GPU, and what helps; empty if it sees one, or there is nothing to see.

    Where CUDA_VISIBLE_DEVICES hides all GPUs, that is what somebody wanted.
    """
    if tf.config.list_physical_devices("GPU") or hidden_by_environment():
        return ""
    driver = nvidia_driver()
    if not driver:
        return ""
    reason = "it was built without CUDA" if not tf.test.is_built_with_cuda() else reason_in(_asked_again())
    return f"an NVIDIA driver is here ({driver}), but TensorFlow sees no GPU: {reason}; {REMEDY} brings its libraries"


def hidden_by_environment() -> bool:
    """Whether CUDA_VISIBLE_DEVICES names no GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() in ("", "-1", "NoDevFiles")


def nvidia_driver() -> str:
    """What tells of a driver: its file, program or library; empty if there is none."""
    if DRIVER_VERSION.exists():
        return str(DRIVER_VERSION)
    program = shutil.which("nvidia-smi")
    if program:
        return program
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    return "libcuda.so.1"


def reason_in(log: str) -> str:
    """What a log of TensorFlow's start says about its GPUs, in one line."""
    for pattern in REASONS:
        if match := pattern.search(log):
            return " ".join(match[0].split())[:200]
    return "it does not say why"


def _asked_again() -> str:
    """What TensorFlow logs in a second process at its most verbose level.

    TensorFlow looks for GPUs and logs the reason once per process, at the log level that it read while loading; in this
    process both are past. Only machines with an NVIDIA driver and no usable GPU pay for the second process.
    """
    loud = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "dso_loader=1,cuda_diagnostics=1"}
    try:
        command, environment = [sys.executable, "-c", QUESTION], {**os.environ, **loud}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr
