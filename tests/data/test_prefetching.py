"""How much input a host makes at one time and keeps ready."""

import math
from types import SimpleNamespace

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf
from conftest import random_examples

from petseg.classes import PETS
from petseg.config import Config
from petseg.data import input_pipeline, prefetching
from petseg.data.backends.memory import MemoryExamples
from petseg.data.bad_example_log import BadExampleLog
from petseg.runs import building
from petseg.runtime import cpus
from petseg.training.stop_requests import StopRequests

GIGABYTE = 2**30


@pytest.fixture
def machine(monkeypatch):
    """Sets the cores and the memory of the machine."""

    def set_to(cores, gigabytes):
        monkeypatch.setattr(cpus, "usable_cpus", lambda: cores)
        monkeypatch.setattr(cpus, "usable_memory", lambda: int(gigabytes * GIGABYTE))

    return set_to


def test_two_cores_make_and_keep_two_batches(machine):
    machine(2, 16)
    assert prefetching.parts_at_once(1, 64, 4 * 2**20) == (2, 2)
    assert prefetching.decodes_of_a_part() == prefetching.decodes_at_once() == 2


def test_weight_maps_count_in_the_memory_of_batches(monkeypatch):
    asked = []
    monkeypatch.setattr(prefetching, "parts_at_once", lambda *sizes: (2, asked.append(sizes[2]) or 2))
    plain = random_examples(4)
    weighted = MemoryExamples(plain.images, plain.masks, PETS, weights=plain.images[..., :1].astype(np.float32))
    model = keras.Sequential([keras.Input([32, 32, 3]), keras.layers.Conv2D(3, 1)])
    flags = {"dataset": "folder", "data_dir": ".", "image_size": "32", "batch_size": 2}
    for examples, weight_files in ((plain, ""), (weighted, "weights/{name}.npy")):
        config, strategy = Config().changed(data={**flags, "weight_files": weight_files}), tf.distribute.get_strategy()
        building.training_batches(config, strategy, examples, steps=range(2), bad_examples=BadExampleLog())
        building.build_evaluator(config, strategy, model, examples, None, StopRequests()).evaluate()
    assert asked == [size * 2 * 32 * 32 for size in (4, 4, 8, 8)]


@pytest.mark.parametrize("local", [1, 2, 8])
def test_two_batches_of_all_local_replicas_are_ready(machine, local):
    machine(8, 64)
    made, ready = prefetching.parts_at_once(local, 8, 2**19)
    assert ready == 2 * local
    assert made >= local or made >= 8


@pytest.mark.parametrize("cores", [2, 4, 8, 16, 64, 128])
@pytest.mark.parametrize(("local", "examples"), [(1, 64), (1, 2), (8, 8), (8, 1)])
def test_all_cores_decode_however_small_a_part_is(machine, cores, local, examples):
    machine(cores, 1024)
    made, _ = prefetching.parts_at_once(local, examples, examples * 2**16)
    at_once = made * min(examples, prefetching.decodes_of_a_part())
    assert at_once >= cores
    assert at_once <= max(4 * cores, 2 * local * prefetching.decodes_of_a_part())
    assert prefetching.decodes_at_once() == cores


def test_memory_bounds_images_in_decoding_and_batches(machine):
    machine(64, 8)
    assert prefetching.decodes_at_once() * prefetching.DECODE_BYTES <= 2 * GIGABYTE
    made, ready = prefetching.parts_at_once(1, 8, 2**19)
    assert made * prefetching.decodes_of_a_part() * prefetching.DECODE_BYTES <= 2 * GIGABYTE
    made, ready = prefetching.parts_at_once(8, 64, 64 * 4 * 2**20)  # 256 MiB each
    assert 4 <= made + ready <= 5
    machine(64, 0)
    assert prefetching.parts_at_once(1, 64, 2**20) == (2, 2)
    assert prefetching.decodes_at_once() == prefetching.decodes_of_a_part() == 1


def test_a_containers_limit_is_the_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GIGABYTE))
    for text, expected in (("max\n", 8 * GIGABYTE), (f"{GIGABYTE}\n", GIGABYTE), (None, 8 * GIGABYTE)):
        file = tmp_path / "memory.max"
        file.unlink(missing_ok=True) if text is None else file.write_text(text)
        monkeypatch.setattr(cpus, "CONTAINER_LIMIT", file)
        assert cpus.usable_memory() == expected


@pytest.mark.parametrize("local", [1, 8])
def test_a_host_makes_and_keeps_parts_of_all_its_replicas(machine, monkeypatch, local):
    """Eight replicas had a quarter of a batch ready, because parts were counted as batches."""
    machine(16, 64)
    used = {}
    for name in ("map", "prefetch"):
        genuine = getattr(tf.data.Dataset, name)
        monkeypatch.setattr(
            tf.data.Dataset,
            name,
            lambda self, *given, name=name, genuine=genuine: used.setdefault(name, given[-1]) and genuine(self, *given),
        )
    context = tf.distribute.InputContext(1, 0, local)
    input_pipeline.training_batches_of_host(
        context, random_examples(16), batch_size=16, seed=0, first_step=0, last_step=2, example_bytes=4096
    )
    assert used["prefetch"] == 2 * local
    assert used["map"] == prefetching.parts_at_once(local, 16 // local, math.prod([16 // local, 4096]))[0]
