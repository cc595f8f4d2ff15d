"""Runs of two processes on the loopback interface, and what the environment may say about a cluster."""

import csv
import itertools
import json
import re
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
import yaml
from conftest import ROOT, own_lines, tiny_flags
from programs_in_forks import Program, run

from petseg.errors import ClusterError, ConfigError
from petseg.runtime import cluster_membership


def free_ports(number):
    sockets = [socket.create_server(("", 0)) for _ in range(number)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def tf_config(addresses, index, job="worker"):
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": job, "index": index}})}


def slurm(index, job_id):
    """The environment of a task, as srun makes it for two tasks on one node."""
    return {
        "SLURM_JOB_ID": str(job_id),
        "SLURM_PROCID": str(index),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }


class Workers:
    """One process of train.py for each environment."""

    def __init__(self, environments, *flags):
        flags = ["--strategy=multi_worker_mirrored", *flags]
        self.processes = [Program("train.py", *flags, env=environment) for environment in environments]

    def finish(self, timeout=240):
        """Exit code, stdout and stderr of each."""
        try:
            outputs = [process.communicate(timeout=timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(process.returncode, *output) for process, output in zip(self.processes, outputs, strict=True)]


def train(*flags):
    result = run("train.py", *flags)
    assert result.returncode == 0, result.stderr
    return result


def logged(workdir, tag="loss", run="train"):
    with open(workdir / "metrics.csv", newline="") as file:
        return {int(row["step"]): float(row["value"]) for row in csv.DictReader(file)
                if (row["run"], row["tag"]) == (run, tag)}  # fmt: skip


def flags_of(data_dir, workdir, steps):
    recipe = ["--optimizer=sgd", "--learning_rate=0.01", "--class_weights=2,2,1", "--ema_decay=0.9"]
    intervals = ["--summary_every=1", "--steps_per_loop=1", "--checkpoint_every=5", "--eval_every=20"]
    return [*tiny_flags(data_dir, workdir), *recipe, *intervals, f"--train_steps={steps}"]


def wait_for(path, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def mirrored(data_dir, tmp_path_factory):
    """The work directory of a run on two replicas of one process."""
    workdir = tmp_path_factory.mktemp("mirrored") / "run"
    train(*flags_of(data_dir, workdir, 20), "--virtual_devices=2")
    return workdir


@pytest.mark.slow
def test_two_workers_train_as_two_replicas_also_when_one_is_stopped_and_then_the_chief_killed(
    data_dir, tmp_path, mirrored
):
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    environments = [tf_config(addresses, index) for index in range(2)]
    workdir = tmp_path / "workers"

    workers = Workers(environments, *flags_of(data_dir, workdir, 20))
    wait_for(workdir / "checkpoints" / "ckpt-5.index")
    workers.processes[1].send_signal(signal.SIGTERM)
    (code, _, stderr), (other_code, _, other_stderr) = workers.finish()
    assert (code, other_code) == (143, 143), stderr
    match = re.search(r"^train.py: stopped by SIGTERM at step (\d+); the same ", other_stderr, re.MULTILINE)
    assert match, other_stderr
    assert (workdir / "checkpoints" / f"ckpt-{match[1]}.index").exists()
    assert f"stopped by SIGTERM, sent to another process, at step {match[1]}; the same command" in stderr

    workers = Workers(environments, *flags_of(data_dir, workdir, 20))
    wait_for(workdir / "checkpoints" / "ckpt-15.index")
    workers.processes[0].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    (code, _, _), (other_code, _, other_stderr) = workers.finish()
    assert time.monotonic() - killed < 60
    assert code == -signal.SIGKILL
    assert other_code == 75
    assert f"train.py: error: lost worker 0 ({addresses[0]}); start all again" in other_stderr
    assert "Traceback" not in other_stderr

    (code, stdout, stderr), (other_code, other_stdout, _) = Workers(
        environments, *flags_of(data_dir, workdir, 20)
    ).finish()
    assert (code, other_code) == (0, 0), stderr
    assert "resumed from" in stderr
    assert "mean IoU" in stdout
    assert other_stdout == ""  # the chief alone speaks and writes
    expected, losses = logged(mirrored), logged(workdir)
    assert list(losses) == list(expected) == list(range(1, 21))
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), rtol=1e-6)
    results = [json.loads((folder / "results" / "test-20.json").read_text()) for folder in (mirrored, workdir)]
    assert results[0]["confusion_matrix"] == results[1]["confusion_matrix"]
    assert sorted(path.name for path in workdir.iterdir()) == sorted(p.name for p in mirrored.iterdir())


@pytest.mark.slow
def test_a_run_goes_from_one_replica_to_two_workers_to_two_replicas_and_back(data_dir, tmp_path, mirrored):
    parts = tmp_path / "parts"
    train(*flags_of(data_dir, parts, 5))
    job = free_ports(1)[0] % 1000  # its ports follow from its number
    for code, _, stderr in Workers([slurm(i, job) for i in range(2)], *flags_of(data_dir, parts, 10)).finish():
        assert code == 0, stderr
    train(*flags_of(data_dir, parts, 15), "--virtual_devices=2")
    train(*flags_of(data_dir, parts, 20))
    expected, losses = logged(mirrored), logged(parts)
    assert list(losses) == list(expected) == list(range(1, 21))
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.slow
def test_workers_with_other_flags_or_other_checkpoints_are_not_trained_together(data_dir, tmp_path):
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    flags = ["--strategy=multi_worker_mirrored", *flags_of(data_dir, tmp_path / "run", 5)]
    processes = [
        Program("train.py", *flags, f"--learning_rate={index + 1}", env=tf_config(addresses, index))
        for index in range(2)
    ]
    messages = [own_lines(process.communicate(timeout=120)[1])[-1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75]
    assert any("was started with other flags than another process" in message for message in messages)


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
    with pytest.raises(ClusterError, match=rf"waited 0.5 s in vain for worker 1 \({other}\)"):
        cluster_membership.join(gpus=0, seconds=0.5)


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


def test_tensorflows_report_names_a_worker_that_still_accepts_connections():
    with socket.create_server(("", 0)) as server:
        addresses = {"worker 0": "localhost:1", "worker 1": f"localhost:{server.getsockname()[1]}"}
        cluster = cluster_membership.Cluster(None, addresses, "worker 0", is_chief=True)
        assert cluster.unreachable() == []
        assert cluster.lost("tasks are unhealthy: /job:worker/replica:0/task:1") == [
            f"worker 1 ({addresses['worker 1']})"
        ]


def test_the_manifests_start_a_cluster():
    job = yaml.safe_load((ROOT / "petseg" / "runtime" / "cluster" / "tfjob.yaml").read_text())
    (container,) = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    assert (container["name"], container["command"]) == ("tensorflow", ["python", "train.py"])
    assert "--strategy=multi_worker_mirrored" in container["args"]
    script = (ROOT / "petseg" / "runtime" / "cluster" / "train.sbatch").read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
