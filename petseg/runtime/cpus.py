"""Number of CPUs available to this process. Imports no TensorFlow."""

import os


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may use (os.process_cpu_count needs Python 3.13)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
