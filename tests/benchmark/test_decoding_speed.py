"""--measure=decoding: decoding speed, and the cores that a GPU needs."""

import pytest
from conftest import data_config

from petseg.benchmark import decoding_speed
from petseg.benchmark.decoding_speed import DecodingConfig, Turn
from petseg.errors import ConfigError


@pytest.mark.parametrize(
    ("images_per_second", "of_a_core", "cores"), [(100, 240, 1), (400, 240, 2), (401, 240, 3), (6400, 300, 26)]
)
def test_needed_cores_include_a_fifth_to_spare(images_per_second, of_a_core, cores):
    assert decoding_speed.cores_needed(images_per_second, of_a_core) == cores


def test_the_table_counts_cores_by_processor_time():
    turns = [Turn(100, seconds, core_seconds) for seconds, core_seconds in ((9.0, 0.5), (8.0, 0.5), (7.0, 0.4))]
    rows = [decoding_speed.summary("batches", turns, (400.0, 1600.0))]
    heading, _, line, _, note = decoding_speed.table(rows).splitlines()
    assert heading.endswith("| cores for 400 images/s | cores for 1600 images/s |")
    assert line == "| batches | 12 (11 to 14) | 200 (200 to 250) | 3 | 10 |"
    assert note == "cores: 20% more than just keep up"


@pytest.mark.parametrize("speeds", ["fast", "100,", "0", "nan", "100,-1"])
def test_gpu_speeds_must_be_positive_numbers(speeds):
    with pytest.raises(ConfigError, match=rf"--gpu_speeds={speeds}: must be numbers above 0, separated by commas"):
        DecodingConfig(gpu_speeds=speeds)


def test_all_decoders_are_measured(array_record_dir):
    data = data_config("synthetic_pets", 32, array_record_dir, batch_size=8)
    rows = decoding_speed.measure(DecodingConfig(gpu_speeds="50,1e9"), data, rounds=1, steps=2)
    assert [row["title"] for row in rows] == [
        "a picture alone, not resized",
        "an example, --decode=full",
        "an example, --decode=scaled",
    ]
    for row in rows:
        assert len(row["images_per_second"]) == len(row["images_per_core_second"]) == 1
        assert min(row["images_per_second"] + row["images_per_core_second"]) > 0
        assert row["cores"]["50"] < row["cores"]["1e+09"]
