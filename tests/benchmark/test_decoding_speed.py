"""--measure=decoding: what decoding takes, and what a GPU needs of it."""

import contextlib
import os
import subprocess
import sys

import psutil
import pytest
import tensorflow as tf
from conftest import data_config

from petseg.benchmark import decoding_speed
from petseg.benchmark.decoding_speed import DecodingConfig, Turn
from petseg.errors import ConfigError


@pytest.mark.parametrize(
    ("images_per_second", "of_a_core", "cores"), [(100, 240, 1), (400, 240, 2), (401, 240, 3), (6400, 300, 26)]
)
def test_cores_that_keep_up_have_a_fifth_to_spare(images_per_second, of_a_core, cores):
    assert decoding_speed.cores_needed(images_per_second, of_a_core) == cores


def test_the_table_counts_cores_by_processor_time_and_not_by_the_clock():
    turns = [Turn(100, seconds, core_seconds) for seconds, core_seconds in ((9.0, 0.5), (8.0, 0.5), (7.0, 0.4))]
    rows = [decoding_speed._row("batches", turns, (400.0, 1600.0))]
    heading, _, line, _, said = decoding_speed.table(rows).splitlines()
    assert heading.endswith("| cores for 400 images/s | cores for 1600 images/s |")
    assert line == "| batches | 12 (11 to 14) | 200 (200 to 250) | 3 | 10 |"
    assert said == "cores: 20% more than just keep up"


@pytest.mark.parametrize("speeds", ["fast", "100,", "0", "nan", "100,-1"])
def test_speeds_of_gpus_are_numbers(speeds):
    with pytest.raises(ConfigError, match=rf"--gpu_speeds={speeds}: must be numbers above 0, separated by commas"):
        DecodingConfig(gpu_speeds=speeds)


@contextlib.contextmanager
def served_by_this_process(number):
    """A data service as `_service` has it, without a process of its own, which would take seconds to start."""
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.removeprefix("grpc://")
    worker = service.WorkerServer(service.WorkerConfig(dispatcher_address=address))
    yield psutil.Process(), address
    del worker, dispatcher


def test_all_ways_to_decode_take_turns(data_dir, monkeypatch):
    monkeypatch.setattr(decoding_speed, "_service", served_by_this_process)
    data = data_config("synthetic_pets", 32, data_dir, batch_size=8, data_service="grpc://nobody:1", cache="none")
    config = DecodingConfig(services=1, gpu_speeds="50,1e9")
    rows = decoding_speed.measure(config, data, rounds=1, steps=2)
    assert [row["title"] for row in rows] == [
        "a picture alone, not resized",
        "an example, --decode=full",
        "an example, --decode=scaled",
        "batches of this process, --decode=full",
        "batches of 1 data service, --decode=full",
    ]
    for row in rows:
        assert len(row["images_per_second"]) == len(row["images_per_core_second"]) == 1
        assert min(row["images_per_second"] + row["images_per_core_second"]) > 0
        assert row["cores"]["50"] < row["cores"]["1e+09"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes cannot be kept to a core here")
def test_services_are_kept_to_one_core_each_and_this_process_is_not():
    usable = os.sched_getaffinity(0)
    command = [sys.executable, "-S", "-c", "import os; print(*os.sched_getaffinity(0))"]
    for number in range(3):
        with decoding_speed._on_core(number):
            child = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(child.stdout) == sorted(usable)[number % len(usable)]
    assert os.sched_getaffinity(0) == usable
