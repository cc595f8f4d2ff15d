"""Telemetry of a run: time by activity, memory, the profiler."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import tensorflow as tf

from petseg.runtime import nvml

MEBIBYTE = 2**20
PARTS = ("evaluation", "checkpoints", "summaries")


class Stopwatch:
    """Shares of wall-clock time since the last reading: training steps, and activities timed by `timing`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._steps: list[np.ndarray] = []

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Times a block as one of PARTS."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - began

    def steps(self, times: np.ndarray) -> None:
        """Records step times: float64 [N, 2], seconds waiting for the batch, and in total."""
        self._steps.append(times)

    def pop_scalars(self, batch_size: int) -> dict[str, float]:
        """Images per second, step time percentiles and time shares by tag; starts a new interval.

        Images per second are those of the wall clock: all time counts but that of PARTS. Call it outside of `timing`.
        Without steps only the shares are returned; an unknown waiting time (NaN) is left out.
        """
        elapsed = time.perf_counter() - self._began
        waited, took = np.concatenate([np.empty((0, 2)), *self._steps]).T
        scalars = {f"time_share/{part}": self._seconds[part] / elapsed for part in PARTS}
        if len(took):
            scalars |= {
                "speed/images_per_second": len(took) * batch_size / (elapsed - sum(self._seconds.values())),
                "speed/step_time_median": float(np.median(took)) * 1000,
                "speed/step_time_p95": float(np.percentile(took, 95)) * 1000,
            }
        if len(took) and not np.isnan(waited).any():
            scalars["time_share/input"] = float(waited.sum()) / elapsed
        self.reset()
        return scalars


def model_speed(images_per_second: float, flops_per_image: float, peak_tflops: float) -> dict[str, float]:
    """TFLOP/s of the model, and their fraction of the peak (MFU), by tag; without what is unknown.

    Args:
      flops_per_image: floating-point operations of a step for each example; NaN if unknown.
      peak_tflops: peak of all devices together in TFLOP/s; 0 if unknown.
    """
    tflops = images_per_second * flops_per_image / 1e12
    if not tflops > 0:
        return {}
    share = {"speed/mfu": tflops / peak_tflops} if peak_tflops else {}
    return {"speed/model_tflops": tflops, **share}


class Profiler:
    """Profiles a range of steps for TensorBoard's profile page.

    Args:
      steps: first step and end of the range (exclusive); equal to profile nothing.
    """

    def __init__(self, directory: Path, steps: tuple[int, int]):
        self._directory, self._steps, self._runs = directory, steps, False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Context of a step; profiles it if it is in the range."""
        first, last = self._steps
        if not first <= step < last:
            self.close()
            yield
            return
        if not self._runs:
            tf.profiler.experimental.start(str(self._directory))
            self._runs = True
        with tf.profiler.experimental.Trace("train", step_num=step, _r=1):
            yield

    def close(self) -> None:
        """Stops a running profile and writes it."""
        if self._runs:
            tf.profiler.experimental.stop()
            self._runs = False


def memory() -> dict[str, float]:
    """Memory in MiB by tag: resident memory of this process, and of its GPUs, if any, with their utilisation."""
    peaks = [
        tf.config.experimental.get_memory_info(device.name.removeprefix("/device:"))["peak"]
        for device in tf.config.list_logical_devices("GPU")
    ]
    device = {"memory/device": max(peaks) / MEBIBYTE} if peaks else {}
    return {"memory/host": psutil.Process().memory_info().rss / MEBIBYTE, **device, **nvml.scalars()}
