"""Records by position, out of array_record files, and the conversion of other files to them (--cache=none)."""

import numpy as np
import pytest
from conftest import as_array_records, data_config
from test_disk_cache import equal, training_batches
from test_loading import picture, png, write_data_set

from petseg.classes import PETS
from petseg.data import loading, to_array_record
from petseg.data.backends import on_demand
from petseg.data.to_array_record import ConversionConfig
from petseg.errors import ConfigError, DataError

COUNT = 10


def mask(i):
    return png(np.full((40, 30), 1 + i % 3, np.uint8))


@pytest.fixture
def folder(tmp_path):
    """A folder with a data set in two TFRecord files."""
    write_data_set(tmp_path / "data", [(png(picture()), mask(i)) for i in range(COUNT)], shards=2)
    return tmp_path / "data"


def test_converted_files_hold_the_same_examples_in_the_same_order(folder, tmp_path):
    """Split, batches and names are the same bits in every mode."""
    converted = as_array_records("handmade_pets", folder, tmp_path / "converted")
    assert len(list(converted.glob("**/*.array_record-*-of-00002"))) == 2
    expected = loading.load(data_config("handmade_pets", 32, folder), "train[2:9]", PETS)
    batches = training_batches(expected)
    for cache in ("memory", "disk", "none"):
        config = data_config("handmade_pets", 32, converted, cache=cache, cache_dir=str(tmp_path / "cache"))
        found = loading.load(config, "train[2:9]", PETS)
        images, masks = found.read(range(len(found)))
        np.testing.assert_array_equal(images, expected.images)
        np.testing.assert_array_equal(masks, expected.masks)
        assert found.names == expected.names
        assert found.names_of([5, 0]) == expected.names_of([5, 0])
        for batch, other in zip(training_batches(found), batches, strict=True):
            equal(batch, other)


def test_a_conversion_overwrites_nothing_and_leaves_nothing_half_done(folder, tmp_path, monkeypatch):
    config = ConversionConfig(dataset="handmade_pets", data_dir=str(folder), output_dir=str(tmp_path / "converted"))
    with monkeypatch.context() as patch:
        patch.setattr(to_array_record.json, "dumps", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            to_array_record.main(config)
    assert not (tmp_path / "converted" / "handmade_pets" / "1.0.0").exists()
    to_array_record.main(config)
    with pytest.raises(ConfigError, match=r"--output_dir=.*handmade_pets/1\.0\.0 exists; must be another folder"):
        to_array_record.main(config)
    with pytest.raises(ConfigError, match="--output_dir: must be a folder"):
        to_array_record.main(ConversionConfig(dataset="handmade_pets", data_dir=str(folder)))


def test_without_a_cache_other_file_formats_are_refused_with_the_command_that_converts_them(folder):
    refused = r"--cache=none: handmade_pets is stored as tfrecord; must be array_record; `python -m petseg"
    with pytest.raises(DataError, match=refused):
        loading.load(data_config("handmade_pets", 32, folder, cache="none"), "train", PETS)


def test_classes_of_a_large_split_are_counted_in_evenly_spaced_masks(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(on_demand, "COUNTED_MASKS", 4)
    converted = as_array_records("handmade_pets", folder, tmp_path / "converted")
    examples = loading.load(data_config("handmade_pets", 32, converted, cache="none"), "train", PETS)
    in_memory = loading.load(data_config("handmade_pets", 32, folder), "train", PETS)
    np.testing.assert_array_equal(np.concatenate([*examples.masks_to_count()]), in_memory.masks[[0, 3, 6, 9]])
    np.testing.assert_array_equal(np.concatenate([*in_memory.masks_to_count()]), in_memory.masks)
