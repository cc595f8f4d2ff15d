"""Environment variables of cluster processes on the loopback interface."""

import json


def tf_config(addresses, index, job="worker"):
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": job, "index": index}})}


def slurm(index, job_id):
    """The environment that srun gives each of two tasks on one node."""
    return {
        "SLURM_JOB_ID": str(job_id),
        "SLURM_PROCID": str(index),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }
