"""The processors of this process. Imports no TensorFlow."""

import os


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    # Python's own os.process_cpu_count comes with 3.13.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
