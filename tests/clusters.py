"""Clusters on the loopback interface: the environments of their processes."""

import json


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
