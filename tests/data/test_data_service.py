"""Batches that other processes make: real ones, on the loopback interface."""

import contextlib
import logging
import re
import signal
import socket
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import changed, load_examples, own_lines, tiny_flags
from programs_in_forks import Program, run
from test_disk_cache import equal, outcome, training_batches

from petseg.data import input_pipeline, service_client
from petseg.errors import ClusterError
from petseg.runs import train
from petseg.runs.work_directory import WorkDirectory


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving():
    """A data service in a process of its own, and its address."""
    port = free_port()
    service = Program("-m", "petseg.data.service", f"--port={port}", "--host=localhost")
    try:
        deadline = time.monotonic() + 60
        while "is ready" not in service.stderr_so_far():
            assert service.poll() is None, service.stderr_so_far()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert f"is ready: --data_service=grpc://localhost:{port} --cache=disk" in service.stderr_so_far()
        yield service, f"localhost:{port}"
    finally:
        service.kill()
        service.wait()


@pytest.fixture(scope="module")
def addresses():
    """Two services."""
    with serving() as (_, first), serving() as (_, second):
        yield [first, second]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("split", "steps"), [("train", (0, 13)), ("train[10%:70%]", (3, 10)), ("train", (5, 6))])
def test_batches_are_the_same_bits_in_the_same_order(addresses, data_dir, cache_dir, split, steps, count):
    memory = load_examples("synthetic_pets", split, 32, str(data_dir))
    disk = load_examples("synthetic_pets", split, 32, str(data_dir), cache="disk", cache_dir=cache_dir)
    options = {"first_step": steps[0], "last_step": steps[1]}
    expected, found = (
        training_batches(memory, **options),
        training_batches(disk, **options, addresses=addresses[:count]),
    )
    for batch, other in zip(expected, found, strict=True):
        equal(batch, other)


@pytest.mark.slow
def test_each_host_fetches_its_own_share(addresses, data_dir, cache_dir):
    memory = load_examples("synthetic_pets", "train", 32, str(data_dir))
    disk = load_examples("synthetic_pets", "train", 32, str(data_dir), cache="disk", cache_dir=cache_dir)
    shares = []
    for host in range(2):
        context = tf.distribute.InputContext(2, host, 4)  # two replicas on each
        dataset = input_pipeline.training_batches_of_host(
            context, disk, batch_size=8, seed=3, first_step=1, last_step=4, addresses=addresses
        )
        shares.append(np.stack([batch["image"].numpy() for batch in dataset]).reshape(3, 4, 32, 32, 3))
    whole = [batch["image"] for batch in training_batches(memory, batch_size=8, first_step=1, last_step=4)]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


def test_two_workers_behind_one_address_are_detected(data_dir, cache_dir):
    disk = load_examples("synthetic_pets", "train", 32, str(data_dir), cache="disk", cache_dir=cache_dir)
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.removeprefix("grpc://")
    workers = [service.WorkerServer(service.WorkerConfig(dispatcher_address=address)) for _ in range(2)]
    named = pytest.raises(ClusterError, match=r"out of order; there must be one worker behind each address; go on")
    with named, service_client.watch_services([address], "go on"):
        training_batches(disk, last_step=2000, addresses=[address])
    assert len(workers) == 2


def test_a_restarted_service_ends_the_run_with_its_name(addresses):
    error = tf.errors.NotFoundError(None, None, "Unknown iteration client id; perhaps a dispatcher restart")
    named = pytest.raises(ClusterError, match=rf"grpc://{addresses[0]} was restarted, .*; go on")
    with named, service_client.watch_services(addresses[:1], "go on"):
        raise error


def test_a_run_whose_service_does_not_answer_ends_in_time_and_writes_nothing(tiny_config, tmp_path):
    service = f"grpc://localhost:{free_port()}"
    data = {"cache": "disk", "cache_dir": str(tmp_path / "cache"), "data_service": service}
    config = changed(changed(tiny_config, "data", **data), "distribution", cluster_timeout=1.0)
    begin = time.monotonic()
    with pytest.raises(ClusterError, match=rf"no answer from {service} within 1 s; `python -m petseg.data.service`"):
        train.train(config)
    assert time.monotonic() - begin < 20
    assert not (tmp_path / "cache").exists()
    assert not WorkDirectory(config.runtime.workdir).path.exists()


@pytest.mark.slow
def test_training_through_services_gives_the_same_numbers(addresses, data_dir, cache_dir, tmp_path):
    services = ",".join(f"grpc://{address}" for address in addresses)
    through = ["--cache=disk", f"--cache_dir={cache_dir}", f"--data_service={services}"]
    found = []
    for name, more in (("alone", []), ("through", through)):
        flags = [*tiny_flags(data_dir, tmp_path / name), "--train_steps=6", "--summary_every=2", "--eval_every=6"]
        result = run("train.py", *flags, *more)
        assert result.returncode == 0, result.stderr
        found.append(outcome(WorkDirectory(tmp_path / name)))
    assert len(found[0][0]) > 50
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_service_that_dies_ends_the_run_in_one_line(data_dir, cache_dir, tmp_path):
    with serving() as (service, address):
        flags = [*tiny_flags(data_dir, tmp_path / "run"), "--train_steps=100000", "--eval_every=100000"]
        flags += ["--cache=disk", f"--cache_dir={cache_dir}", f"--data_service=grpc://{address}"]
        training = Program("train.py", *flags, "--checkpoint_every=5")
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("run/checkpoints/*.index")) and time.monotonic() < deadline:
            time.sleep(0.1)
        service.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        _, stderr = training.communicate(timeout=60)
    assert time.monotonic() - killed < 40
    assert training.returncode == 75, stderr
    line = own_lines(stderr)[-1]
    assert line == (
        f"train.py: error: --data_service: lost grpc://{address}; restart it, then rerun to resume from the "
        f"newest checkpoint in {tmp_path}/run/checkpoints"
    )
    assert "Traceback" not in stderr


def test_missing_services_are_logged_once_while_a_run_waits(monkeypatch, caplog):
    answers = iter([False, False, True, False, True, False, True, True])
    monkeypatch.setattr(service_client.sockets, "answers", lambda address: next(answers))
    monkeypatch.setattr(service_client, "POLL_SECONDS", 0.001)
    with caplog.at_level(logging.INFO, "petseg"):
        service_client.wait_for_services(["a:1", "b:1"], 10)
    assert caplog.messages == ["waiting for the data service: grpc://a:1, grpc://b:1"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_service_ends_on_signals(number, code):
    with serving() as (service, _):
        service.send_signal(number)
        assert service.wait(timeout=30) == code
    ready, last = own_lines(service.stderr_so_far())
    assert re.search(r"the data service is ready", ready)
    assert last == f"petseg.data.service: stopped by {signal.Signals(number).name}"


def test_a_service_refuses_bad_flags_in_one_line():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        for flag, message in (
            (f"--port={port}", f"--port={port}: cannot listen there: Address already in use"),
            ("--port=0", "--port=0: must be a whole number of at least 1 and at most 65535"),
            ("--host=no.such.host.invalid", "--host=no.such.host.invalid: has no address"),
        ):
            result = run("-m", "petseg.data.service", flag, timeout=60)
            assert result.returncode == 2, result.stderr
            (line,) = own_lines(result.stderr)
            assert line.startswith(f"petseg.data.service: error: {message}")
