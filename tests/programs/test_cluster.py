"""Clusters of several processes on the loopback interface."""

import csv
import json
import re
import signal
import time

import numpy as np
import pytest
from clusters import slurm, tf_config
from conftest import tiny_flags
from programs_in_forks import Program, run

from petseg.runs.work_directory import WorkDirectory
from petseg.runtime import rendezvous, sockets
from petseg.runtime.sockets import free_ports


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


def logged(workdir, tag="loss", run="train"):
    with open(workdir / "metrics.csv", newline="") as file:
        return {int(row["step"]): float(row["value"]) for row in csv.DictReader(file)
                if (row["run"], row["tag"]) == (run, tag)}  # fmt: skip


def flags_of(data_dir, workdir):
    recipe = ["--batch_size=12", "--optimizer=sgd", "--learning_rate=0.01", "--class_weights=2,2,1", "--ema_decay=0.9"]
    intervals = ["--summary_every=1", "--steps_per_loop=1", "--checkpoint_every=5", "--eval_every=4"]
    return [*tiny_flags(data_dir, workdir), *recipe, *intervals, "--train_steps=20"]


def wait_for(path, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def end_with_patience(scores):
    """The smallest patience with which a run of these scores ends early, but not before step 16, and the step."""
    for patience in range(1, len(scores)):
        best = 0
        for step, score in scores.items():
            best = step if not best or score > scores[best] else best
            if sum(best < at <= step for at in scores) >= patience:
                break
        if 16 <= step < max(scores):
            return patience, step
    raise AssertionError(f"no patience ends such a run early: {scores}")


@pytest.mark.slow
def test_a_cluster_that_lost_its_chief_resumes_with_two_workers_and_matches_one_process(data_dir, tmp_path):
    alone, workdir = tmp_path / "alone", tmp_path / "workers"
    result = run("train.py", *flags_of(data_dir, alone))
    assert result.returncode == 0, result.stderr
    patience, last = end_with_patience(logged(alone, "mean_iou", "ema"))
    flags = [*flags_of(data_dir, workdir), f"--patience={patience}"]
    addresses = [f"localhost:{port}" for port in free_ports(3)]
    environments = [tf_config(addresses, index) for index in range(3)]

    workers = Workers(environments, *flags)
    wait_for(workdir / "checkpoints" / "ckpt-5.index")
    workers.processes[0].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    (code, _, _), *others = workers.finish()
    assert time.monotonic() - killed < 60
    assert code == -signal.SIGKILL
    for code, _, stderr in others:
        assert code == 75
        assert re.search(
            rf"^train.py: error: lost worker 0 \({addresses[0]}\).*; restart all processes", stderr, re.MULTILINE
        )
        assert "Traceback" not in stderr
        assert "retracing" not in stderr

    workers = Workers(environments[1:], *flags, "--min_workers=2", "--cluster_timeout=5")
    wait_for(workdir / "checkpoints" / "ckpt-10.index")
    workers.processes[1].send_signal(signal.SIGTERM)
    (code, _, stderr), (other_code, _, other_stderr) = workers.finish()
    assert (code, other_code) == (143, 143), stderr
    assert f"no answer from worker 0 ({addresses[0]}) within 5 s; continues with 2 of 3 processes" in stderr
    match = re.search(r"^train.py: stopped by SIGTERM at step (\d+); rerun ", other_stderr, re.MULTILINE)
    assert match, other_stderr
    assert (workdir / "checkpoints" / f"ckpt-{match[1]}.index").exists()
    assert f"stopped by SIGTERM, sent to another process, at step {match[1]}; rerun to resume" in stderr

    job = free_ports(1)[0] % 1000  # its ports follow from its number
    (code, stdout, stderr), (other_code, other_stdout, _) = Workers([slurm(i, job) for i in range(2)], *flags).finish()
    assert (code, other_code) == (0, 0), stderr
    assert "resumed from" in stderr
    assert f"in {patience} evaluations: the run ends here" in stderr
    assert "mean IoU" in stdout
    assert other_stdout == ""  # the chief alone speaks and writes
    losses = logged(workdir)
    assert list(losses) == list(range(1, last + 1))
    expected = [logged(alone)[step] for step in losses]
    np.testing.assert_allclose(list(losses.values()), expected, rtol=1e-5)
    assert (workdir / "checkpoints" / f"ckpt-{last}.index").exists()
    results = [json.loads((folder / "results" / f"test-{last}.json").read_text()) for folder in (alone, workdir)]
    matrices = [np.array(each["confusion_matrix"]) for each in results]
    assert np.abs(matrices[0] - matrices[1]).sum() <= 4  # a pixel between two classes may fall on either side
    assert sorted(path.name for path in workdir.iterdir()) == sorted(path.name for path in alone.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_that_dies_before_tensorflow_starts_is_named_in_time(data_dir, tmp_path, dead):
    ports = free_ports(2)
    addresses = [f"localhost:{port}" for port in ports]
    flags = [*flags_of(data_dir, tmp_path / "run"), "--cluster_timeout=15"]
    workers = Workers([tf_config(addresses, 1 - dead)], *flags)
    named = {f"worker {i}": address for i, address in enumerate(addresses)}
    rendezvous.meet(named, f"worker {dead}", sockets.listen(ports[dead]), fewest=2, seconds=120)
    began = time.monotonic()
    ((code, _, stderr),) = workers.finish()
    assert time.monotonic() - began < 60  # TensorFlow waits for 20 s
    assert code == 75
    assert f"train.py: error: lost worker {dead} ({addresses[dead]}); restart all processes" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_with_its_exit_code(data_dir, tmp_path):
    """Not as if that process was lost: a scheduler would start all again, into the same error."""
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    with WorkDirectory(tmp_path / "run").locked():
        workers = Workers([tf_config(addresses, i) for i in range(2)], *flags_of(data_dir, tmp_path / "run"))
        (code, _, stderr), (other_code, _, other_stderr) = workers.finish()
    assert (code, other_code) == (2, 2), other_stderr
    (message,) = re.findall("^train.py: error: (.*)", stderr, re.MULTILINE)
    assert f"train.py: error: worker 0 ended: {message}\n" in other_stderr


SLOW_TO_SCORE = """
import pathlib, time
import numpy as np
from petseg.training.trainer import Trainer

HERE = pathlib.Path(__file__).parent

class Examples:
    classes = ["background", "pet", "border"]

    def __init__(self, split):
        self.is_scored = split == "test"

    def __len__(self):
        return 24

    def __getitem__(self, i):
        if self.is_scored and (HERE / "trained").exists():
            (HERE / "scoring").touch()
            time.sleep(0.3)
        return {"image": np.full([32, 32, 3], 9 * i, np.uint8), "mask": np.full([32, 32], i % 3, np.uint8)}

def examples(data_dir, split):
    return Examples(split)

class Counted(Trainer):
    def run(self, batches, steps):
        nodes = [node.op for each in self.loop.graph(batches).as_graph_def().library.function for node in each.node_def]
        print([op for op in nodes if op.startswith(("CollectiveReduce", "CollectiveGather"))])
        times = super().run(batches, steps)
        if self.step.numpy() == 2:
            (HERE / "trained").touch()
        return times
"""


@pytest.mark.slow
def test_sigterm_to_one_process_while_all_score_stops_all_of_them(tmp_path):
    """The one that stops takes fewer batches than the others, so taking a batch may not be collective."""
    code = tmp_path / "slow_to_score.py"
    code.write_text(SLOW_TO_SCORE)
    source = [f"--dataset={code}:examples", "--cache=none", f"--step={code}:Counted", "--eval_every=2"]
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    flags = [*tiny_flags(tmp_path, tmp_path / "run"), *source, "--train_steps=20", "--nosync_batch_norm"]
    workers = Workers([tf_config(addresses, i) for i in range(2)], *flags)
    wait_for(tmp_path / "scoring")
    workers.processes[1].send_signal(signal.SIGTERM)
    for code, stdout, stderr in workers.finish(60):
        assert code == 143, stderr
        assert f"at step 2; rerun to resume from {tmp_path}/run/checkpoints/ckpt-2\n" in stderr
        assert stdout.startswith("['CollectiveReduceV2']\n")  # that of the gradients
    assert (tmp_path / "run" / "checkpoints" / "ckpt-2.index").exists()


@pytest.mark.slow
def test_sigterm_stops_a_scoring_worker_and_the_other_names_it(data_dir, tmp_path):
    trained = run("train.py", *tiny_flags(data_dir, tmp_path / "run"), "--train_steps=1")
    assert trained.returncode == 0, trained.stderr
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    flags = [f"--workdir={tmp_path / 'run'}", "--strategy=multi_worker_mirrored"]
    workers = [Program("eval.py", *flags, env=tf_config(addresses, index)) for index in range(2)]
    try:
        deadline = time.monotonic() + 120
        while "computes on" not in workers[0].stderr_so_far():  # so TensorFlow's coordination has begun
            assert time.monotonic() < deadline
            time.sleep(0.02)
        workers[0].send_signal(signal.SIGTERM)
        _, stderr = workers[0].communicate(timeout=120)
        assert workers[0].returncode == 143, stderr
        assert "eval.py: stopped by SIGTERM" in stderr
        _, stderr = workers[1].communicate(timeout=120)
        assert workers[1].returncode in (75, -signal.SIGABRT), stderr  # TensorFlow aborts where its service is gone
        assert "Traceback" not in stderr
    finally:
        for worker in workers:
            worker.kill()
