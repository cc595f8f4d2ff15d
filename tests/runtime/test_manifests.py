"""The manifests in petseg/runtime/cluster; no scheduler is needed for these tests."""

import os
import subprocess

import pytest
import yaml
from conftest import ROOT

CLUSTER = ROOT / "petseg" / "runtime" / "cluster"

# What stands for Slurm: the nodes of the job and srun's exit codes are lines of files, which are used up.
NEXT = 'head -n 1 "$FAKES/{0}"; sed -i 1d "$FAKES/{0}"'
FAKES = {
    "squeue": NEXT.format("nodes"),
    "srun": 'echo "$@" >> "$FAKES/calls"; exit "$(' + NEXT.format("codes") + ')"',
    "sleep": ":",
}


def run_script(folder, *, nodes, codes, **environment):
    """Exit code, error output and srun's arguments of train.sbatch in a job whose nodes and exit codes are given."""
    for name, text in FAKES.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "nodes").write_text("\n".join(nodes) + "\n")
    (folder / "codes").write_text("\n".join(map(str, codes)) + "\n")
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "FAKES": str(folder), "SLURM_JOB_ID": "7", **environment}
    command = ["bash", str(CLUSTER / "train.sbatch"), "--workdir=runs/my pets", "--batch_size=6"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr.splitlines(), (folder / "calls").read_text().splitlines()


def srun(number, nodes, tasks):
    return (
        f"--nodes={number} --nodelist={nodes} --ntasks={tasks} --overlap --kill-on-bad-exit=0 --wait=120 "
        "python train.py --strategy=multi_worker_mirrored --workdir=runs/my pets --batch_size=6"
    )


def test_a_job_starts_again_on_the_nodes_that_are_left(tmp_path):
    code, log, calls = run_script(tmp_path, nodes=["3 n[1-3]", "2 n[1,3]"], codes=[75, 0])
    assert code == 0
    assert log == ["train.sbatch: exit code 75 on 3 nodes; starts again on those that are left"]
    assert calls == [srun(3, "n[1-3]", 3), srun(2, "n[1,3]", 2)]


@pytest.mark.parametrize("code", [1, 75, 134, 135, 137, 139])
def test_a_job_that_lost_a_process_starts_again(tmp_path, code):
    assert run_script(tmp_path, nodes=["2 n[1-2]"] * 2, codes=[code, 0])[0] == 0


@pytest.mark.parametrize(("code", "why"), [
    (2, "starting again would not help"),
    (3, "starting again would not help"),
    (4, "starting again would not help"),
    (127, "starting again would not help"),
    (130, "stopped on request; submit it again to resume"),
    (143, "stopped on request; submit it again to resume"),
])  # fmt: skip
def test_a_job_that_was_stopped_or_would_fail_again_does_not_start_again(tmp_path, code, why):
    ended, log, calls = run_script(tmp_path, nodes=["2 n[1-2]"] * 2, codes=[code, 0])
    assert (ended, len(calls)) == (code, 1)
    assert log == [f"train.sbatch: exit code {code} on 2 nodes: {why}"]


def test_a_job_that_cannot_go_on_ends(tmp_path):
    code, log, calls = run_script(tmp_path, nodes=["2 n[1-2]"] * 2, codes=[137, 2])
    assert (code, len(calls)) == (2, 2)
    assert log[1] == "train.sbatch: exit code 2 on 2 nodes: starting again would not help"


def test_a_job_does_not_start_again_for_ever(tmp_path):
    environment = {"PETSEG_RESTARTS": "2", "SLURM_NTASKS_PER_NODE": "4"}
    code, log, calls = run_script(tmp_path, nodes=["2 n[1-2]"] * 3, codes=[1] * 3, **environment)
    assert code == 1
    assert calls == [srun(2, "n[1-2]", 8)] * 3
    assert log[-1] == "train.sbatch: exit code 1 after 2 restarts, the most that PETSEG_RESTARTS allows"


@pytest.fixture
def tfjob():
    return yaml.safe_load((CLUSTER / "tfjob.yaml").read_text())


def test_the_tfjob_starts_a_cluster_that_may_shrink(tfjob):
    worker = tfjob["spec"]["tfReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    assert (container["name"], container["command"]) == ("tensorflow", ["python", "train.py"])
    flags = dict(argument.removeprefix("--").split("=") for argument in container["args"])
    assert flags["strategy"] == "multi_worker_mirrored"
    assert worker["restartPolicy"] == "OnFailure"  # with ExitCode, 75 would be final
    for number in range(int(flags["min_workers"]), worker["replicas"] + 1):
        assert int(flags["batch_size"]) % number == 0


def strict(schema):
    """A schema in which an object has no other keys than those that are named."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    return {"additionalProperties": False, **inner} if isinstance(schema.get("properties"), dict) else inner


def test_the_tfjob_is_what_the_training_operator_reads(tfjob):
    jsonschema = pytest.importorskip("jsonschema")
    file = os.environ.get("PETSEG_TEST_TFJOB_SCHEMA", "")
    if not os.path.isfile(file):
        pytest.skip("PETSEG_TEST_TFJOB_SCHEMA names no file kubeflow.org_tfjobs.yaml of the Training Operator v1")
    with open(file) as definition:
        (version,) = yaml.load(definition, yaml.CSafeLoader)["spec"]["versions"]
    assert tfjob["apiVersion"] == f"kubeflow.org/{version['name']}"
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    jsonschema.validate(tfjob, schema)
    tfjob["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["img"] = "misspelt"
    with pytest.raises(jsonschema.ValidationError, match="img"):
        jsonschema.validate(tfjob, schema)
