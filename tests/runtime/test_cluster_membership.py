"""What the environment may say about a cluster."""

import itertools
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow as tf
from clusters import slurm, tf_config

from petseg.errors import ClusterError, ConfigError
from petseg.runtime import cluster_membership, rendezvous, sockets
from petseg.runtime.sockets import free_ports

BAD_TF_CONFIGS = [
    ("not json", "is not JSON"),
    ("[]", "cluster is None; must be an object"),
    ('{"cluster": {"worker": ["a:1"]}}', "task is None; must be an object"),
    ('{"cluster": {}, "task": {"type": "worker", "index": 0}}', "cluster names no worker, only nothing"),
    ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "names no worker, only ps"),
    ('{"cluster": {"worker": []}, "task": {"type": "worker", "index": 0}}', "names no worker"),
    ('{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}', "must be a list of 'host:port'"),
    ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "must be a list of 'host:port'"),
    ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}', "task type is 'evaluator'"),
    ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "task index is 1; must be 0 to 0"),
    ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}', "task index is -1"),
    ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "0"}}', "task index is '0'"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TF_CONFIGS)
def test_a_tf_config_that_describes_no_cluster_is_refused(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ConfigError, match=f"TF_CONFIG: .*{message}"):
        cluster_membership.join(gpus=0, seconds=1)


def test_a_port_that_is_taken_is_refused_by_name(monkeypatch):
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        monkeypatch.setenv("TF_CONFIG", tf_config([address], 0)["TF_CONFIG"])
        with pytest.raises(ConfigError, match=rf"worker 0 \({address}\): cannot listen at its port: Address already"):
            cluster_membership.join(gpus=0, seconds=1)


def test_a_worker_that_does_not_come_is_named(monkeypatch):
    mine, other = (f"localhost:{port}" for port in free_ports(2))
    monkeypatch.setenv("TF_CONFIG", tf_config([mine, other], 0)["TF_CONFIG"])
    with pytest.raises(ClusterError, match=rf"no answer from worker 1 \({other}\) within 0.5 s"):
        cluster_membership.join(gpus=0, seconds=0.5)


def test_min_workers_above_the_size_of_the_cluster_is_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config(["localhost:1", "localhost:2"], 0)["TF_CONFIG"])
    with pytest.raises(ConfigError, match="--min_workers=3: must be at most 2, the number of processes of the cluster"):
        cluster_membership.join(gpus=0, seconds=1, fewest=3)


def test_a_process_that_continues_alone_is_worker_0_and_the_chief(monkeypatch):
    other, mine = (f"localhost:{port}" for port in free_ports(2))
    monkeypatch.setenv("TF_CONFIG", tf_config([other, mine], 1)["TF_CONFIG"])
    cluster = cluster_membership.join(gpus=0, seconds=0.2, fewest=1)
    assert (cluster.name, cluster.is_chief, cluster.addresses) == ("worker 0", True, {"worker 0": mine})
    assert cluster.resolver.cluster_spec().as_dict() == {"worker": [mine]}
    assert (cluster.resolver.task_type, cluster.resolver.task_id) == ("worker", 0)


def test_a_cluster_of_one_is_joined_at_once(monkeypatch):
    (port,) = free_ports(1)
    monkeypatch.setenv("TF_CONFIG", tf_config([f"localhost:{port}"], 0)["TF_CONFIG"])
    cluster = cluster_membership.join(gpus=0, seconds=1)
    assert (cluster.name, cluster.is_chief) == ("worker 0", True)


@pytest.mark.parametrize(("jobs", "task", "chief"), [
    ({"worker": ["a:1", "b:2"]}, ("worker", 0), True),
    ({"worker": ["a:1", "b:2"]}, ("worker", 1), False),
    ({"chief": ["c:3"], "worker": ["a:1"]}, ("chief", 0), True),
    ({"chief": ["c:3"], "worker": ["a:1"]}, ("worker", 0), False),
])  # fmt: skip
def test_the_chief_is_the_chief_or_else_worker_0(monkeypatch, jobs, task, chief):
    description = {"cluster": jobs, "task": {"type": task[0], "index": task[1]}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(description))
    cluster = cluster_membership.described_by_environment(gpus=0)
    assert cluster.is_chief == chief
    assert list(cluster.addresses.values()) == list(itertools.chain(*jobs.values()))


@pytest.mark.parametrize("index", [0, 1])
def test_slurm_tells_hosts_and_tasks_and_the_job_the_port(monkeypatch, index):
    for name, value in slurm(index, job_id=4007).items():
        monkeypatch.setenv(name, value)
    cluster = cluster_membership.described_by_environment(gpus=0)
    assert cluster.addresses == {"worker 0": "localhost:10140", "worker 1": "localhost:10141"}
    assert cluster.name == f"worker {index}"
    assert cluster.is_chief == (index == 0)


def test_a_slurm_environment_with_holes_is_refused(monkeypatch):
    for name, value in slurm(0, job_id=7).items():
        if name != "SLURM_STEP_TASKS_PER_NODE":
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="SLURM_STEP_TASKS_PER_NODE not found"):
        cluster_membership.described_by_environment(gpus=0)


@pytest.mark.slow
def test_tensorflows_report_names_a_worker_that_still_accepts_connections():
    with socket.create_server(("", 0)) as server:
        addresses = {"worker 0": "localhost:1", "worker 1": f"localhost:{server.getsockname()[1]}"}
        cluster = cluster_membership.Cluster(None, addresses, "worker 0", is_chief=True)
        assert cluster.unreachable() == []
        assert cluster.lost("tasks are unhealthy: /job:worker/replica:0/task:1") == [
            f"worker 1 ({addresses['worker 1']})"
        ]


def of_two(address):
    return cluster_membership.Cluster(None, {"worker 0": "localhost:1", "worker 1": address}, "worker 0", is_chief=True)


def test_a_process_that_was_restarted_and_waits_at_the_rendezvous_is_lost():
    with sockets.listen(0) as listener, ThreadPoolExecutor(1) as pool:
        cluster = of_two(f"localhost:{listener.getsockname()[1]}")
        restarted = pool.submit(rendezvous.meet, cluster.addresses, "worker 1", listener, fewest=2, seconds=1)
        assert cluster.unreachable() == [f"worker 1 ({cluster.addresses['worker 1']})"]
        with pytest.raises(ClusterError, match="no answer from worker 0"):
            restarted.result(10)


@pytest.mark.slow
def test_of_the_tasks_in_a_report_those_that_did_not_come_in_time_are_lost():
    report = (
        "Barrier timed out. # of tasks that reached the barrier: 2/3.\nThe first task at the barrier: "
        "/job:worker/replica:0/task:2. Some timed out task names:\n/job:worker/replica:0/task:1\n"
    )
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        addresses = {f"worker {i}": address for i in range(3)}
        cluster = cluster_membership.Cluster(None, addresses, "worker 0", is_chief=True)
        assert cluster.lost(report) == [f"worker 1 ({address})"]


@pytest.mark.parametrize("code", [1, 2, 3])
def test_an_error_that_another_process_reported_is_explained_with_its_exit_code(code):
    text = (
        f"Collective ops is aborted by: petseg: worker 1 ended with exit code {code}: runs/a: cannot be written\nmore"
    )
    error = of_two("localhost:2").explain(tf.errors.AbortedError(None, None, text))
    assert (str(error), error.exit_code) == ("worker 1 ended: runs/a: cannot be written", code)
