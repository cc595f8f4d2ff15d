import subprocess
import sys
import time

import numpy as np
import pytest

from petseg.reporting import telemetry
from petseg.reporting.telemetry import Profiler, Stopwatch


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
    assert scalars["speed/images_per_second"] == pytest.approx(3 * 6 / 0.060)
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


@pytest.mark.slow
def test_host_memory_is_that_of_this_process():
    # In a process of its own because memory of other tests may be freed here at any time.
    code = """
import numpy as np
from petseg.reporting import telemetry
before = telemetry.memory()["memory/host"]
block = np.ones(64 * 2**20, np.uint8)
print(telemetry.memory()["memory/host"] - before)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(output) == pytest.approx(64, abs=4)


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
