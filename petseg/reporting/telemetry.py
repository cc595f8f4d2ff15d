"""What a run needs: time, by what it goes into, and memory."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import tensorflow as tf

MEBIBYTE = 2**20
PARTS = ("evaluation", "checkpoints", "summaries")


class Stopwatch:
    """Where the time since the last reading went.

    What is timed is training, as the loop's own record of its steps tells, and whatever stands in ``with
    stopwatch.timing(...)``.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets what was, and begins now."""
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._steps: list[np.ndarray] = []

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Adds the time that it surrounds to a part of the run: evaluation, checkpoints, summaries."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - began

    def steps(self, times: np.ndarray) -> None:
        """Takes note of steps: float64 [N, 2], the seconds that each waited for its batch, and took in all."""
        self._steps.append(times)

    def pop_scalars(self, batch_size: int) -> dict[str, float]:
        """Images per second, percentiles of the step, and shares of the wall clock, by tag; starts anew.

        What took no time at all since the last reading, such as a checkpoint that was not due, has the share 0; without
        a step, what follows from steps is left out, as is the wait for input where it is not known.
        """
        elapsed = time.perf_counter() - self._began
        waited, took = np.concatenate([np.empty((0, 2)), *self._steps]).T
        scalars = {f"time_share/{part}": self._seconds[part] / elapsed for part in PARTS}
        if len(took):
            scalars |= {
                "speed/images_per_second": len(took) * batch_size / float(took.sum()),
                "speed/step_time_median": float(np.median(took)) * 1000,
                "speed/step_time_p95": float(np.percentile(took, 95)) * 1000,
            }
        if len(took) and not np.isnan(waited).any():
            scalars["time_share/input"] = float(waited.sum()) / elapsed
        self.reset()
        return scalars


class Profiler:
    """Profiles a range of steps, for TensorBoard's profile page.

    Args:
      directory: folder to write to, that of a run's event files.
      steps: the first step, and the first after the last; equal for none.
    """

    def __init__(self, directory: Path, steps: tuple[int, int]):
        self._directory, self._steps, self._runs = directory, steps, False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Surrounds what begins with a step; what is not in the range is not profiled."""
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
        """Writes what was profiled, if anything was."""
        if self._runs:
            tf.profiler.experimental.stop()
            self._runs = False


def memory() -> dict[str, float]:
    """Memory in MiB by tag: resident memory of this process; the most that any GPU has held, where there is one."""
    peaks = [
        tf.config.experimental.get_memory_info(device.name.removeprefix("/device:"))["peak"]
        for device in tf.config.list_logical_devices("GPU")
    ]
    device = {"memory/device": max(peaks) / MEBIBYTE} if peaks else {}
    return {"memory/host": psutil.Process().memory_info().rss / MEBIBYTE, **device}
