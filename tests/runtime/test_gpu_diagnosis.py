import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf

from petseg.runtime import gpu_diagnosis

# As TensorFlow 2.21 writes them.
NO_LIBRARY = """\
I0000 00:00:1 1 dso_loader.cc:144] Could not load dynamic library 'libcudnn.so.9'; dlerror: libcudnn.so.9: cannot open
W0000 00:00:1 1 gpu_device.cc:2342] Cannot dlopen some GPU libraries. Please make sure the missing libraries mentioned
"""
NO_CUDA = "I0000 00:00:1 1 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.\n"
NO_DEVICE = "E0000 00:00:1 1 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: no CUDA-capable device\n"


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """A machine with an NVIDIA driver, on which TensorFlow sees no GPU."""
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15")
    monkeypatch.setattr(gpu_diagnosis, "DRIVER_VERSION", file)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return file


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (NO_CUDA + NO_LIBRARY, "Could not load dynamic library 'libcudnn.so.9'; dlerror: libcudnn.so.9: cannot open"),
        (NO_CUDA + NO_DEVICE, "failed call to cuInit: INTERNAL: CUDA error: no CUDA-capable device"),
        (NO_CUDA, "Could not find cuda drivers"),
        ("", "no reason is logged"),
    ],
)
def test_a_gpu_that_tensorflow_does_not_see_is_one_line_with_reason_and_remedy(monkeypatch, driver, log, reason):
    asked = []

    def run(command, *, env, **options):
        asked.append((command[0], env["TF_CPP_MIN_LOG_LEVEL"]))
        return SimpleNamespace(stderr=log)

    monkeypatch.setattr(subprocess, "run", run)
    assert gpu_diagnosis.warning() == (
        f"an NVIDIA driver is installed ({driver}), but TensorFlow sees no GPU: {reason}; "
        "install CUDA: pip install -e '.[cuda]'"
    )
    assert asked == [(sys.executable, "0")]  # not at the level that hides the reason


def test_a_tensorflow_without_cuda_starts_no_second_process(monkeypatch, driver):
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked"))
    assert "sees no GPU: it was built without CUDA; install CUDA: pip install -e '.[cuda]'" in gpu_diagnosis.warning()


def test_there_is_nothing_to_warn_of_where_a_gpu_is_seen_or_hidden_or_absent(monkeypatch, driver):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked"))
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert gpu_diagnosis.warning() == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["GPU"])
    assert gpu_diagnosis.warning() == ""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    monkeypatch.setattr(gpu_diagnosis, "nvidia_driver", lambda: "")
    assert gpu_diagnosis.warning() == ""


def test_a_driver_is_known_by_its_file_its_program_or_its_library(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_diagnosis, "DRIVER_VERSION", tmp_path / "none")
    monkeypatch.setattr(gpu_diagnosis.shutil, "which", lambda name: None)
    monkeypatch.setattr(gpu_diagnosis.ctypes, "CDLL", lambda name: None)
    assert gpu_diagnosis.nvidia_driver() == "libcuda.so.1"
    monkeypatch.setattr(gpu_diagnosis.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert gpu_diagnosis.nvidia_driver() == "/usr/bin/nvidia-smi"
    monkeypatch.setattr(gpu_diagnosis, "DRIVER_VERSION", Path("/"))
    assert gpu_diagnosis.nvidia_driver() == "/"


@pytest.mark.slow
def test_a_second_process_logs_the_reason(driver):
    if gpu_diagnosis.nvidia_driver() != str(driver):
        pytest.skip("this machine has a driver of its own")
    assert "no reason is logged" not in gpu_diagnosis.warning()


@pytest.mark.parametrize(
    ("capability", "says"),
    [((9, 0), ""), ((10, 0), "Blackwell, compute capability 10.0"), ((12, 0), "Blackwell"), ((13, 1), "(compute")],
)
def test_a_gpu_newer_than_tensorflows_kernels_is_named_with_its_generation(monkeypatch, capability, says):
    details = {"device_name": "NVIDIA B200", "compute_capability": capability}
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["GPU:0"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    monkeypatch.setattr(gpu_diagnosis, "_architectures", lambda: ["sm_60", "sm_89", "compute_90"])
    line = gpu_diagnosis.missing_kernels()
    assert bool(line) == bool(says)
    assert says in line
    assert "\n" not in line
    monkeypatch.setattr(gpu_diagnosis, "_architectures", lambda: [])  # a build without CUDA
    assert gpu_diagnosis.missing_kernels() == ""
