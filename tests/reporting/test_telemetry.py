import sys
import time
import types

import numpy as np
import programs_in_forks
import pytest
import tensorflow as tf
from conftest import changed

from petseg.config import Config
from petseg.reporting import telemetry
from petseg.reporting.telemetry import Profiler, Stopwatch, model_speed
from petseg.runtime import gpu_peaks, nvml


def test_the_stopwatch_measures_steps_and_shares_of_time():
    stopwatch = Stopwatch()
    began = time.perf_counter()
    with stopwatch.timing("evaluation"):
        time.sleep(0.2)
    stopwatch.steps(np.array([[0.0, 0.010], [0.005, 0.020]]))
    stopwatch.steps(np.array([[0.005, 0.030]]))
    time.sleep(0.2)
    scalars = stopwatch.pop_scalars(batch_size=6)
    elapsed = time.perf_counter() - began
    # By the wall clock: what passes between calls counts, evaluations do not.
    assert scalars["speed/images_per_second"] == pytest.approx(3 * 6 / (elapsed - 0.2), rel=0.1)
    assert scalars["speed/images_per_second"] < 3 * 6 / 0.2
    assert scalars["speed/step_time_median"] == pytest.approx(20)
    assert scalars["speed/step_time_p95"] == pytest.approx(29)
    assert scalars["time_share/input"] == pytest.approx(0.010 / elapsed, rel=0.1)
    assert 0.2 / elapsed <= scalars["time_share/evaluation"] < 0.75
    assert scalars["time_share/checkpoints"] == scalars["time_share/summaries"] == 0


def test_reading_the_stopwatch_starts_a_new_interval():
    stopwatch = Stopwatch()
    stopwatch.steps(np.array([[0.0, 0.010]]))
    with stopwatch.timing("summaries"):
        pass
    stopwatch.pop_scalars(batch_size=6)
    scalars = stopwatch.pop_scalars(batch_size=6)
    assert scalars == {f"time_share/{part}": 0.0 for part in telemetry.PARTS}


def test_the_speed_of_the_model_is_beside_the_peak_of_its_devices():
    assert model_speed(500.0, 2e9, 10.0) == {"speed/model_tflops": 1.0, "speed/mfu": 0.1}
    assert model_speed(500.0, 2e9, 0.0) == {"speed/model_tflops": 1.0}
    assert model_speed(500.0, float("nan"), 10.0) == model_speed(0.0, 2e9, 10.0) == {}


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "mixed_bfloat16", True, 989),
        ("NVIDIA H100 PCIe", "mixed_float16", True, 756),
        ("NVIDIA H200", "float32", True, 495),
        ("NVIDIA A100-SXM4-40GB", "float32", False, 19.5),
        ("NVIDIA A10G", "float32", True, 35),
        ("NVIDIA L4", "mixed_float16", True, 121),
        ("NVIDIA L40S", "mixed_float16", True, 362),
        ("Tesla V100-SXM2-16GB", "float32", True, 15.7),
        ("Tesla V100-PCIE-32GB", "mixed_float16", True, 112),
        ("Tesla T4", "mixed_bfloat16", True, 0),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "float32", True, 0),
        ("NVIDIA GeForce RTX 3080 Ti", "float32", True, 0),
        ("NVIDIA GeForce RTX 4090", "mixed_float16", True, 165),
        ("AMD Instinct MI300X", "float32", True, 0),
    ],
)
def test_peaks_of_common_gpus(name, precision, tf32, peak):
    assert gpu_peaks.peak_tflops(name, precision, tf32) == peak


def test_the_peak_is_that_of_all_visible_gpus_unless_it_is_given(monkeypatch):
    names = {"GPU:0": "NVIDIA H200", "GPU:1": "NVIDIA H200"}
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [*names])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"device_name": names[gpu]})
    assert gpu_peaks.peak_of_visible_devices(Config()) == 990
    assert gpu_peaks.peak_of_visible_devices(changed(Config(), "compute", peak_tflops=3.0)) == 6
    names["GPU:1"] = "NVIDIA Something New"
    assert gpu_peaks.peak_of_visible_devices(Config()) == 0
    names.clear()  # a CPU
    assert gpu_peaks.peak_of_visible_devices(Config()) == 0
    assert gpu_peaks.peak_of_visible_devices(changed(Config(), "compute", peak_tflops=3.0)) == 3


class FakeNvml(types.ModuleType):
    """What stands for `pynvml` on a machine with 4 GPUs."""

    class NVMLError(Exception):
        pass

    nvmlInit = staticmethod(lambda: None)  # noqa: N815
    nvmlDeviceGetHandleByIndex = staticmethod(lambda index: [10, 20, 30, 40][index])  # noqa: N815
    nvmlDeviceGetHandleByUUID = staticmethod({"GPU-a": 30}.__getitem__)  # noqa: N815
    nvmlDeviceGetUtilizationRates = staticmethod(lambda handle: types.SimpleNamespace(gpu=handle))  # noqa: N815
    nvmlDeviceGetMemoryInfo = staticmethod(lambda handle: types.SimpleNamespace(used=handle * 2**20))  # noqa: N815


@pytest.fixture
def gpus(monkeypatch):
    """Two visible GPUs, of which NVML tells."""
    devices = [types.SimpleNamespace(name=f"/physical_device:GPU:{i}") for i in range(2)]
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: devices)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("pynvml"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml.visible_handles.cache_clear()
    yield
    nvml.visible_handles.cache_clear()


@pytest.mark.parametrize(
    ("visible", "utilisation", "used"), [("", 0.15, 20), ("3,1", 0.3, 40), ("GPU-a,0", 0.2, 30), ("7,8", None, None)]
)
def test_nvml_tells_utilisation_and_memory_of_the_gpus_that_tensorflow_sees(
    monkeypatch, gpus, visible, utilisation, used
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = {"speed/gpu_utilisation": utilisation, "memory/device_in_use": used}
    assert nvml.scalars() == ({key: pytest.approx(value) for key, value in found.items()} if used else {})


def test_without_nvml_or_where_it_fails_nothing_is_said(monkeypatch, gpus):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.scalars() == {}
    nvml.visible_handles.cache_clear()
    fake = FakeNvml("pynvml")

    def fails(handle):
        raise FakeNvml.NVMLError

    fake.nvmlDeviceGetUtilizationRates = fails
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert nvml.scalars() == {}


@pytest.mark.slow
def test_host_memory_is_that_of_this_process():
    # In a process of its own because memory of other tests may be freed here at any time.
    code = """
import numpy as np
from petseg.config import Config
from petseg.reporting import telemetry
before = telemetry.memory()["memory/host"]
block = np.ones(64 * 2**20, np.uint8)
print(telemetry.memory()["memory/host"] - before)
"""
    result = programs_in_forks.run("-c", code)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(64, abs=4)


def test_the_profiler_profiles_the_given_steps(tmp_path):
    profiler = Profiler(tmp_path, (2, 4))
    files = []
    for step in range(6):
        with profiler.step(step):
            files.append(len(list(tmp_path.rglob("*.xplane.pb"))))
    profiler.close()
    assert files == [0, 0, 0, 0, 1, 1]
    (file,) = tmp_path.rglob("*.xplane.pb")
    traced = file.read_bytes()
    assert b"train" in traced
    assert b"step_num" in traced
