"""Records by position: the index of TFRecord files, and files of array_record."""

import os
from concurrent import futures

import numpy as np
import pytest
import tensorflow as tf
from array_record.python import array_record_module
from conftest import data_config
from test_decoding import picture, png, write_data_set
from test_disk_cache import equal, training_batches

from petseg.classes import PETS
from petseg.data import catalog, decoding, index
from petseg.data.catalog import DataSet
from petseg.data.index import IndexConfig
from petseg.data.records import record_index
from petseg.data.records.record_index import Shard
from petseg.errors import ConfigError, DataError

COUNT = 10
CLASSES = '[{"name": "pet", "value": 1}, {"name": "background", "value": 2}, {"name": "border", "value": 3}]'


def mask(i):
    return png(np.full((40, 30), 1 + i % 3, np.uint8))


@pytest.fixture
def folder(tmp_path):
    """A folder with a data set in two files."""
    write_data_set(tmp_path, [(png(picture()), mask(i)) for i in range(COUNT)], shards=2)
    return tmp_path


def shards_of(folder):
    data_set = catalog.open_data(data_config("handmade_pets", 32, folder), PETS)
    stretches = data_set.stretches("train")
    return stretches, [Shard(stretch.file, stretch.in_file) for stretch in stretches]


def write(shards, folder):
    written = []
    with futures.ThreadPoolExecutor(2) as executor:
        record_index.write(shards, folder, executor, written.append)
    return written


def test_the_index_is_written_once_beside_the_data_and_goes_on_where_it_was_left(folder, capsys):
    _, shards = shards_of(folder)
    place = record_index.folder_of(shards, "")
    assert place == shards[0].file.parent / "petseg_index"
    assert write(shards[:1], place) == shards[:1]
    assert record_index.missing(shards, place) == shards[1:]
    assert write(shards, place) == shards[1:]
    head, *offsets = tf.data.TFRecordDataset(str(shards[0].index_file(place))).as_numpy_iterator()
    assert (len(head) + 16, len(offsets)) == (record_index.HEAD, shards[0].count)  # 16: what frames a record
    assert np.frombuffer(offsets[0], "<i8").tolist() == [0]
    times = [shard.index_file(place).stat().st_mtime_ns for shard in shards]
    (folder / "classes.json").write_text(CLASSES)
    config = data_config("handmade_pets", 32, folder, classes=str(folder / "classes.json"))
    index.main(IndexConfig(data=config))
    assert f"{COUNT} records in 2 files; index: {place}" in capsys.readouterr().out
    assert times == [shard.index_file(place).stat().st_mtime_ns for shard in shards]


def test_an_index_of_another_state_of_its_file_is_not_believed(folder):
    _, shards = shards_of(folder)
    place = record_index.folder_of(shards, "")
    write(shards, place)
    os.utime(shards[0].file, ns=(0, 0))
    assert record_index.missing(shards, place) == shards[:1]
    os.truncate(shards[1].index_file(place), 40)
    assert record_index.missing(shards, place) == shards


def test_where_nothing_can_be_written_it_goes_under_the_cache_dir(folder, tmp_path, monkeypatch):
    _, shards = shards_of(folder)
    monkeypatch.setattr(record_index.os, "access", lambda path, mode: False)
    place = record_index.ensure(shards, str(tmp_path / "cache"), "train")
    assert place.is_relative_to(tmp_path / "cache")
    assert not record_index.missing(shards, place)
    write(shards, shards[0].file.parent / record_index.FOLDER)  # somebody who may wrote it since
    assert record_index.folder_of(shards, "") == shards[0].file.parent / record_index.FOLDER


def test_files_that_cannot_be_read_are_named(folder, tmp_path):
    _, (shard, _) = shards_of(folder)
    cut = tmp_path / "cut.tfrecord"
    cut.write_bytes(shard.file.read_bytes()[:-3])
    for file, count, message in (
        (cut, shard.count, r"cut\.tfrecord: must be a TFRecord file, not compressed, and a whole one"),
        (shard.file, 1000, rf"has {shard.count} records; must have 1000, as the data set says"),
        (tmp_path / "none", 1, "none: cannot be read: No such file"),
    ):
        with pytest.raises(DataError, match=message):
            record_index.write_one(Shard(file, count), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def write_again_as_array_records(folder, other):
    """The data set of a folder once more, in the other format."""
    (source,) = folder.glob("handmade_pets/*")
    target = other / source.relative_to(folder)
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix == ".json":
            (target / file.name).write_text(file.read_text().replace("tfrecord", "array_record"))
        elif file.is_file():
            path = target / file.name.replace("tfrecord", "array_record")
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
            for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
                writer.write(record)
            writer.close()


def test_array_records_are_the_same_examples(folder, tmp_path):
    """The same records in the other format: split, batches and names are the same bits in every mode."""
    write_again_as_array_records(folder, tmp_path / "other")
    expected = decoding.load(data_config("handmade_pets", 32, folder), "train[2:9]", PETS)
    batches = training_batches(expected)
    for where in (folder, tmp_path / "other"):
        for cache in ("memory", "disk", "none"):
            config = data_config("handmade_pets", 32, where, cache=cache, cache_dir=str(tmp_path / "cache"))
            found = decoding.load(config, "train[2:9]", PETS)
            np.testing.assert_array_equal(found.images[:], expected.images)
            np.testing.assert_array_equal(found.masks[:], expected.masks)
            assert found.names == expected.names
            for batch, other in zip(training_batches(found), batches, strict=True):
                equal(batch, other)
    served = data_config("handmade_pets", 32, tmp_path / "other", cache="none", data_service="grpc://nowhere:1")
    with pytest.raises(ConfigError, match=r"files of handmade_pets must be tfrecord; got array_record"):
        decoding.load(served, "train", PETS)


def test_other_file_formats_want_a_cache(folder, monkeypatch):
    monkeypatch.setattr(DataSet, "file_format", "riegeli")
    with pytest.raises(DataError, match=r"handmade_pets lies in files of format riegeli; must be .*--cache=disk"):
        decoding.load(data_config("handmade_pets", 32, folder, cache="none"), "train", PETS)


def test_many_masks_are_counted_by_some_from_all_over(folder, monkeypatch):
    monkeypatch.setattr(decoding, "COUNTED_MASKS", 4)
    examples = decoding.load(data_config("handmade_pets", 32, folder, cache="none"), "train", PETS)
    counted = examples.counted_masks()
    np.testing.assert_array_equal(counted[:], examples.masks[[0, 3, 6, 9]])
    in_memory = decoding.load(data_config("handmade_pets", 32, folder), "train", PETS)
    assert in_memory.counted_masks() is in_memory.masks
