"""How much input a host makes at one time and keeps ready."""

import math
from types import SimpleNamespace

import psutil
import pytest
import tensorflow as tf
from conftest import random_examples

from petseg.data import feeding, input_pipeline
from petseg.runtime import cpus

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
    assert feeding.parts_at_once(1, 64, 4 * 2**20) == (2, 2)
    assert feeding.decodes_of_a_part() == feeding.decodes_at_once() == 2


@pytest.mark.parametrize("local", [1, 2, 8])
def test_two_batches_of_all_local_replicas_are_ready(machine, local):
    machine(8, 64)
    made, ready = feeding.parts_at_once(local, 8, 2**19)
    assert ready == 2 * local
    assert made >= local or made >= 8


@pytest.mark.parametrize("cores", [2, 4, 8, 16, 64, 128])
@pytest.mark.parametrize(("local", "examples"), [(1, 64), (1, 2), (8, 8), (8, 1)])
def test_all_cores_decode_however_small_a_part_is(machine, cores, local, examples):
    machine(cores, 1024)
    made, _ = feeding.parts_at_once(local, examples, examples * 2**16)
    at_once = made * min(examples, feeding.decodes_of_a_part())
    assert at_once >= cores
    assert at_once <= max(4 * cores, 2 * local * feeding.decodes_of_a_part())
    assert feeding.decodes_at_once() == cores


def test_memory_bounds_images_in_decoding_and_batches(machine):
    machine(64, 8)
    assert feeding.decodes_at_once() * feeding.DECODE_BYTES <= 2 * GIGABYTE
    made, ready = feeding.parts_at_once(1, 8, 2**19)
    assert made * feeding.decodes_of_a_part() * feeding.DECODE_BYTES <= 2 * GIGABYTE
    made, ready = feeding.parts_at_once(8, 64, 64 * 4 * 2**20)  # 256 MiB each
    assert 4 <= made + ready <= 5
    machine(64, 0)
    assert feeding.parts_at_once(1, 64, 2**20) == (2, 2)
    assert feeding.decodes_at_once() == feeding.decodes_of_a_part() == 1


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
    assert used["map"] == feeding.parts_at_once(local, 16 // local, math.prod([16 // local, 4096]))[0]
