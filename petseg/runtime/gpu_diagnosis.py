"""Diagnosis: why TensorFlow sees no GPU on a machine that has one."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

DRIVER_VERSION = Path("/proc/driver/nvidia/version")
REMEDY = "pip install -e '.[cuda]'"
TIMEOUT_SECONDS = 120
BLACKWELL = {10: "Blackwell, ", 12: "Blackwell, "}  # by the first number of the compute capability
PROBE = "import tensorflow as tf; tf.config.list_physical_devices('GPU')"
# Log lines with the reason, the most specific first.
REASONS = (
    re.compile(r"Could not load dynamic library.*"),
    re.compile(r"failed call to cuInit.*"),
    re.compile(r"Cannot dlopen some GPU libraries"),
    re.compile(r"Could not find cuda drivers"),
    re.compile(r"(kernel|library|driver) version .* does not match.*"),
)


def warnings() -> list[str]:
    """One line for each reason why GPUs are not used, or not at their speed; empty if there is none."""
    return [text for text in (warning(), missing_kernels()) if text]


def warning() -> str:
    """Returns one line with the reason why TensorFlow sees no GPU, and the remedy.

    Empty if it sees one, if there is no NVIDIA driver, or if CUDA_VISIBLE_DEVICES hides all GPUs on purpose.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() in ("", "-1", "NoDevFiles")
    if hidden or tf.config.list_physical_devices("GPU"):
        return ""
    driver = nvidia_driver()
    if not driver:
        return ""
    reason = "it was built without CUDA" if not tf.test.is_built_with_cuda() else reason_in(_verbose_log())
    return f"an NVIDIA driver is installed ({driver}), but TensorFlow sees no GPU: {reason}; install CUDA: {REMEDY}"


def missing_kernels() -> str:
    """Returns one line if a visible GPU is newer than TensorFlow's kernels, such as Blackwell; else an empty text."""
    newest = max((int(number) for number in re.findall(r"\d+", " ".join(_architectures()))), default=0)
    for device in tf.config.get_visible_devices("GPU") if newest else ():
        details = tf.config.experimental.get_device_details(device)
        capability = details.get("compute_capability")
        if capability and capability[0] > newest // 10:
            return (
                f"TensorFlow {tf.__version__} has no kernels for {details.get('device_name', 'this GPU')} "
                f"({BLACKWELL.get(capability[0], '')}compute capability {capability[0]}.{capability[1]}; its newest is "
                f"{newest // 10}.{newest % 10}): it compiles them at the first start, for up to an hour, or fails; "
                "use an earlier GPU, or a TensorFlow that was built for this one"
            )
    return ""


def _architectures() -> Sequence[str]:
    """The GPU architectures that TensorFlow was built for, such as `sm_89` and `compute_90`; empty without CUDA."""
    return tf.sysconfig.get_build_info().get("cuda_compute_capabilities", ())


def nvidia_driver() -> str:
    """Returns the file, program or library that shows that an NVIDIA driver is installed; empty if there is none."""
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
    """Finds the reason why no GPU is used in a log of TensorFlow's start, as one line."""
    for pattern in REASONS:
        if match := pattern.search(log):
            return " ".join(match[0].split())[:200]
    return "no reason is logged"


def _verbose_log() -> str:
    """Returns TensorFlow's log of its search for GPUs, at the most verbose level, from a second process.

    TensorFlow searches once per process, at the log level that it read while loading, so it is too late in this one.
    Only machines with an NVIDIA driver and no usable GPU pay for the second process.
    """
    loud = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "dso_loader=1,cuda_diagnostics=1"}
    try:
        command, environment = [sys.executable, "-c", PROBE], {**os.environ, **loud}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr
