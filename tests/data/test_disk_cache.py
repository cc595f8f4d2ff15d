"""Examples on disk: the same bytes as in memory, bounded memory, and damaged files are not used."""

import json
import os
import signal

import numpy as np
import programs_in_forks
import pytest
import tensorflow as tf
from conftest import NUM_TRAIN, as_array_records, changed, load_examples, replicas
from short_trainings import SMALL_NETWORK
from test_loading import picture, png, write_data_set

from petseg.data import input_pipeline, loading
from petseg.data.backends import disk
from petseg.data.backends.disk import Cache
from petseg.errors import ConfigError, DataError
from petseg.runs import train
from petseg.runs.work_directory import WorkDirectory

ARRAY_RECORD = "array_record"  # folder, below that of the TFRecord files, of the converted data sets
SPLITS = ["train", "train[10%:50%]", "train[:5]+train[9:]", "train[20:22]+train[3:4]"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder with data sets of 70 examples in three files: in their own order, and in TFDS's."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("shards")
    for name, ordered in (("in_order", True), ("shuffled", False)):
        examples = [
            (png(rng.integers(0, 256, (20, 24, 3), np.uint8)), png(rng.integers(1, 4, (20, 24), np.uint8)))
            for _ in range(70)
        ]
        write_data_set(folder, examples, name=name, shards=3, ordered=ordered)
        assert len(list((folder / name).glob("**/*.tfrecord*"))) == 3
        as_array_records(name, folder, folder / ARRAY_RECORD)
    return folder


def in_all_modes(dataset, split, data_dir, converted, cache_dir, size=32):
    return {
        cache: load_examples(dataset, split, size, str(folder), cache=cache, cache_dir=str(cache_dir))
        for cache, folder in (("memory", data_dir), ("disk", data_dir), ("none", converted))
    }


def equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
        assert one[key].dtype == other[key].dtype


def training_batches(examples, **options):
    options = {"batch_size": 4, "seed": 3, "first_step": 0, "last_step": 4, **options}
    context = tf.distribute.InputContext(1, 0, 1)
    return list(input_pipeline.training_batches_of_host(context, examples, **options).as_numpy_iterator())


@pytest.mark.parametrize("split", SPLITS[:3])
def test_batches_are_the_same_bits_in_all_modes(data_dir, array_record_dir, tmp_path, split):
    memory, *others = in_all_modes("synthetic_pets", split, data_dir, array_record_dir, tmp_path).values()
    expected = training_batches(memory)
    evaluated = list(input_pipeline.distributed_evaluation_batches(replicas(1), memory, batch_size=7)[0])
    for examples in others:
        assert (examples.names, examples.groups) == (memory.names, memory.groups)
        for batch, other in zip(expected, training_batches(examples), strict=True):
            equal(batch, other)
        batches, _ = input_pipeline.distributed_evaluation_batches(replicas(1), examples, batch_size=7)
        for batch, other in zip(evaluated, batches, strict=True):
            equal(*({key: value.numpy() for key, value in each.items()} for each in (batch, other)))


@pytest.mark.parametrize("dataset", ["in_order", "shuffled"])
@pytest.mark.parametrize("split", SPLITS)
def test_several_shards_and_slices_keep_the_order(shards, tmp_path, dataset, split):
    memory, *others = in_all_modes(dataset, split, shards, shards / ARRAY_RECORD, tmp_path).values()
    for examples in others:
        images, masks = examples.read(range(len(examples)))
        np.testing.assert_array_equal(images, memory.images)
        np.testing.assert_array_equal(masks, memory.masks)


def test_replicas_get_the_same_from_their_records(data_dir, array_record_dir, tmp_path):
    memory, _, records = in_all_modes("synthetic_pets", "train", data_dir, array_record_dir, tmp_path).values()
    parts = []
    for examples in (memory, records):
        strategy = replicas(2)
        batches = input_pipeline.distributed_training_batches(
            strategy, examples, batch_size=8, seed=0, first_step=1, last_step=3
        )
        parts.append([value.numpy() for b in batches for value in strategy.experimental_local_results(b["image"])])
    np.testing.assert_array_equal(*parts)


def outcome(workdir):
    of_the_machine = ("speed/", "time_share/", "memory/")
    rows = [row for row in workdir.metrics_file.read_text().splitlines() if not any(t in row for t in of_the_machine)]
    return rows, {path.name: path.read_text() for path in workdir.results.iterdir()}


@pytest.mark.slow
def test_whole_runs_end_in_the_same_numbers(tiny_config, same_build, array_record_dir, tmp_path):
    found = []
    for cache in ("memory", "disk", "none"):
        config = changed(tiny_config, "data", cache=cache, cache_dir=str(tmp_path / "cache"))
        if cache == "none":
            config = changed(config, "data", data_dir=str(array_record_dir))
        config = config.changed(model=vars(SMALL_NETWORK), loss={"class_weights": "median_frequency"})
        train.train(changed(config, "runtime", workdir=str(tmp_path / cache)))
        found.append(outcome(WorkDirectory(tmp_path / cache)))
    assert len(found[0][0]) > 50
    assert found[0] == found[1] == found[2]


def test_a_second_run_reuses_what_the_first_one_decoded(data_dir, tmp_path, caplog, monkeypatch):
    first = load_examples("synthetic_pets", "train", 32, str(data_dir), cache="disk", cache_dir=str(tmp_path))
    monkeypatch.setattr(loading, "_decode_all", None)
    caplog.clear()
    with caplog.at_level("INFO", logger="petseg"):
        again = load_examples("synthetic_pets", "train", 32, str(data_dir), cache="disk", cache_dir=str(tmp_path))
    (line,) = caplog.messages
    assert line.startswith(f"reusing {NUM_TRAIN} decoded examples at 32x32 px: {tmp_path}/synthetic_pets-2.0.0-train")
    for one, other in zip(first.read(range(NUM_TRAIN)), again.read(range(NUM_TRAIN)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (first.names, first.groups) == (again.names, again.groups)


def cache_of(folder, key="a"):
    return Cache(str(folder), "pets", {"key": key}, 3, (4, 4))


def filled_with(value):
    def fill(keep):
        for _ in range(3):
            keep({"image": np.full((4, 4, 3), value, np.uint8), "mask": np.full((4, 4, 1), value, np.uint8)})
        return ("a", "b", "c"), {"species": ("cat", "dog", "cat")}

    return fill


def test_each_key_has_its_own_files(tmp_path):
    for value, key in ((1, "a"), (2, "b")):
        assert cache_of(tmp_path, key).ensure_written(filled_with(value))[1] == {"species": ("cat", "dog", "cat")}
    assert (cache_of(tmp_path, "a").read(np.arange(3))[0] == 1).all()
    assert (cache_of(tmp_path, "b").read(np.arange(3))[1] == 2).all()


def test_a_changed_data_set_is_noticed(tmp_path):
    mask, found = np.full((40, 30), 2, np.uint8), []
    for value in (10, 200):
        write_data_set(tmp_path / str(value), [(png(np.full_like(picture(), value)), png(mask))])
        (tmp_path / "data").unlink(missing_ok=True)
        (tmp_path / "data").symlink_to(tmp_path / str(value))
        found.append(
            load_examples("handmade_pets", "train", 32, str(tmp_path / "data"), cache="disk", cache_dir=str(tmp_path))
        )
    assert [examples.read([0])[0].max() for examples in found] == [
        10,
        200,
    ]  # and the first run's files are still its own


@pytest.mark.parametrize("name", ["images.u8", "masks.u8", disk.RECORD])
@pytest.mark.parametrize("harm", [lambda file: os.truncate(file, 20), os.remove], ids=["truncated", "removed"])
def test_damaged_files_are_written_again(tmp_path, caplog, name, harm):
    cache = cache_of(tmp_path)
    cache.ensure_written(filled_with(1))
    harm(cache.folder / name)
    with pytest.raises(DataError, match=rf"{name}: .*; rerun to write it again"):
        cache.check()
    names, _ = cache_of(tmp_path).ensure_written(filled_with(2))
    assert names == ("a", "b", "c")
    assert (cache.read(np.arange(3))[0] == 2).all()
    assert f"{cache.folder / name}: " in caplog.text


def write_and_be_killed(folder):
    def fill(keep):
        keep({"image": np.ones((4, 4, 3), np.uint8), "mask": np.ones((4, 4, 1), np.uint8)})
        os.kill(os.getpid(), signal.SIGKILL)

    cache_of(folder).ensure_written(fill)


def test_files_of_a_killed_process_are_not_used(tmp_path):
    assert programs_in_forks.exit_code(write_and_be_killed, tmp_path) == -signal.SIGKILL
    cache = cache_of(tmp_path)
    unfinished = cache.folder.with_name(cache.folder.name + ".unfinished")
    assert unfinished.is_dir()
    assert not cache.folder.exists()
    cache.ensure_written(filled_with(2))
    assert (cache.read(np.arange(3))[0] == 2).all()
    assert not unfinished.exists()


def test_a_failed_write_leaves_no_files(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"--cache_dir=.*No space left on device: it takes 0\.0 MiB, .* are free"):
        cache_of(tmp_path).ensure_written(filled_with(1))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported_before_anything_is_decoded(tmp_path, monkeypatch, data_dir):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(2**20))
    with pytest.raises(ConfigError, match=r"No space left on device: it takes 24\.0 MiB, 1\.0 MiB are free"):
        load_examples("synthetic_pets", "train", 512, str(data_dir), cache="disk", cache_dir=str(tmp_path))


class Usage:
    def __init__(self, free):
        self.free = free


def test_a_bad_example_leaves_no_files(tmp_path):
    bad = np.full((40, 30), 4, np.uint8)
    write_data_set(tmp_path / "data", [(png(picture()), png(bad))])
    with pytest.raises(DataError, match=r"handmade_pets, split train, example 0.*holds value 4 in no class"):
        load_examples("handmade_pets", "train", 32, str(tmp_path / "data"), cache="disk", cache_dir=str(tmp_path))
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "data"]


def test_files_that_vanish_during_a_run_are_named(tmp_path):
    write_data_set(tmp_path / "data", [(png(picture()), png(np.full((40, 30), 2, np.uint8))) for _ in range(4)])
    as_array_records("handmade_pets", tmp_path / "data", tmp_path / "converted")
    cached, records = (
        load_examples("handmade_pets", "train", 32, str(tmp_path / folder), cache=cache, cache_dir=str(tmp_path))
        for cache, folder in (("disk", "data"), ("none", "converted"))
    )
    for file in [*tmp_path.glob("*px*/images.u8"), *tmp_path.glob("converted/**/*.array_record*")]:
        os.truncate(file, 30)
    with pytest.raises(DataError, match=r"images\.u8: has 30 bytes"), input_pipeline.naming_lost_files(cached):
        training_batches(cached, last_step=1)
    with pytest.raises(DataError, match="was changed or removed"), input_pipeline.naming_lost_files(records):
        training_batches(records, last_step=1)


MEASURE = """
import json, sys, tensorflow as tf
from petseg.classes import PETS
from petseg.config import DataConfig
from petseg.data import input_pipeline, loading
from petseg.runtime import host_allocator
host_allocator.keep_freed_memory()  # as every run does; and so what was needed for a moment is seen
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024
def work(cache, split):
    examples = loading.load(
        DataConfig(
            dataset="handmade_pets",
            image_size="256",
            data_dir=sys.argv[3 if cache == "none" else 1],
            cache=cache,
            cache_dir=sys.argv[2],
        ),
        split,
        PETS,
    )
    context = tf.distribute.InputContext(1, 0, 1)
    batches = input_pipeline.training_batches_of_host(
        context, examples, batch_size=4, seed=0, first_step=0, last_step=len(examples) // 4)
    return max(anonymous() for batch in batches)
for cache in ("disk", "none", "memory"):
    work(cache, "train[:16]")
before = anonymous()
print(json.dumps({cache: work(cache, "train") - before for cache in ("disk", "none", "memory")}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux's way to tell anonymous memory")
def test_memory_does_not_grow_with_the_data(tmp_path):
    rng = np.random.default_rng(0)
    examples = [
        (png(rng.integers(0, 256, (16, 16, 3), np.uint8)), png(rng.integers(1, 4, (16, 16), np.uint8)))
        for _ in range(600)
    ]
    write_data_set(tmp_path / "data", examples)  # 150 MiB, once decoded
    converted = as_array_records("handmade_pets", tmp_path / "data", tmp_path / "converted")
    result = programs_in_forks.run("-c", MEASURE, tmp_path / "data", tmp_path / "cache", converted, timeout=120)
    growth = json.loads(result.stdout)
    assert growth["memory"] > 140, growth
    assert growth["disk"] < 60, growth
    assert growth["none"] < 60, growth
