"""Processes that meet, as threads of this one."""

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor, TimeoutError as FutureTimeoutError

import pytest

from petseg.errors import ClusterError
from petseg.runtime import rendezvous, sockets


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(rendezvous, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(rendezvous, "FRESH_SECONDS", 0.5)
    monkeypatch.setattr(sockets, "PROBE_SECONDS", 0.3)


@pytest.fixture
def cluster():
    """The listening sockets of three processes, by their names."""
    with contextlib.ExitStack() as stack:
        yield {f"worker {i}": stack.enter_context(sockets.listen(0)) for i in range(3)}


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as pool:
        yield pool


def addresses(cluster):
    return {name: f"localhost:{listener.getsockname()[1]}" for name, listener in cluster.items()}


def start(pool, cluster, name, known, **options):
    return pool.submit(rendezvous.meet, known, name, cluster[name], **{"fewest": 3, "seconds": 20, **options})


def lose(cluster, *names):
    for name in names:
        cluster[name].close()


def all_but(lost):
    return [name for name in ("worker 0", "worker 1", "worker 2") if name not in lost]


def test_all_that_come_go_on_as_soon_as_they_are_there(pool, cluster):
    known = addresses(cluster)
    calls = [start(pool, cluster, name, known) for name in reversed(known)]
    assert [call.result(10) for call in calls] == [list(known)] * 3


@pytest.mark.parametrize("lost", ["worker 0", "worker 1", "worker 2"])
def test_without_one_the_others_go_on_when_the_time_is_up_and_agree(pool, cluster, caplog, lost):
    known, left = addresses(cluster), all_but([lost])
    lose(cluster, lost)
    calls = [start(pool, cluster, name, known, fewest=2, seconds=0.5) for name in left]
    assert [call.result(10) for call in calls] == [left, left]
    warning = f"no answer from {lost} ({known[lost]}) within 0.5 s; continues with 2 of 3 processes"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [warning] * 2


@pytest.mark.parametrize(("lost", "fewest"), [(["worker 1"], 3), (["worker 0"], 3), (["worker 1", "worker 2"], 2)])
def test_too_few_processes_name_the_missing_ones(pool, cluster, lost, fewest):
    known = addresses(cluster)
    lose(cluster, *lost)
    for call in [start(pool, cluster, name, known, fewest=fewest, seconds=0.3) for name in all_but(lost)]:
        with pytest.raises(ClusterError) as caught:
            call.result(10)
        silent = ", ".join(f"{name} ({known[name]})" for name in lost)
        assert str(caught.value) == f"no answer from {silent} within 0.3 s"


@contextlib.contextmanager
def at_work(listener):
    """Makes a process answer like TensorFlow's server, in another protocol."""
    stop = threading.Event()

    def serve():
        listener.settimeout(0.01)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.sendall(b"\0\0\6\4")
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.parametrize("name", ["worker 0", "worker 2"])
def test_a_late_process_waits_until_the_others_restart(pool, cluster, caplog, name):
    caplog.set_level("INFO")
    known = addresses(cluster)
    with contextlib.ExitStack() as stack:
        for other in all_but([name]):
            stack.enter_context(at_work(cluster[other]))
        late = start(pool, cluster, name, known, fewest=1, seconds=0.1)
        with pytest.raises(FutureTimeoutError):  # in Python 3.10 not the built-in one
            late.result(1)
    assert f"{name} waits until the others, which train without it, restart" in caplog.text
    calls = [start(pool, cluster, other, known, fewest=1) for other in all_but([name])]
    assert [call.result(10) for call in [late, *calls]] == [list(known)] * 3


def test_where_all_must_be_there_those_at_work_are_not_waited_for_longer(pool, cluster):
    known = addresses(cluster)
    with at_work(cluster["worker 0"]), pytest.raises(ClusterError, match=r"no answer from worker 0 .*, worker 2"):
        start(pool, cluster, "worker 1", known, seconds=0.2).result(10)


def test_a_halted_process_is_not_waited_for_for_ever(pool, cluster):
    """Its system goes on accepting connections."""
    known = addresses(cluster)
    calls = [start(pool, cluster, name, known, fewest=2, seconds=0.2) for name in ("worker 1", "worker 2")]
    assert [call.result(20) for call in calls] == [["worker 1", "worker 2"]] * 2


def test_an_unknown_process_is_not_counted(pool, cluster):
    known = addresses(cluster)
    lose(cluster, "worker 1", "worker 2")
    call = start(pool, cluster, "worker 0", known, fewest=2, seconds=0.5)
    host, port = known["worker 0"].split(":")
    for words in (b"GET / HTTP/1.1\r\n\r\n", b'"worker 9"\n', b"\xff\n", b""):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(words)
    with pytest.raises(ClusterError, match=r"no answer from worker 1 .*, worker 2"):
        call.result(10)


def test_a_probe_of_the_port_is_not_counted(pool, cluster):
    known = addresses(cluster)
    lose(cluster, "worker 2")
    call = start(pool, cluster, "worker 0", known, fewest=2, seconds=0.5)
    assert rendezvous.is_waiting_at(known["worker 0"])
    assert not rendezvous.is_waiting_at(known["worker 2"])
    with at_work(cluster["worker 1"]):
        assert not rendezvous.is_waiting_at(known["worker 1"])
    lose(cluster, "worker 1")
    with pytest.raises(ClusterError, match=r"no answer from worker 1 .*, worker 2"):
        call.result(10)
