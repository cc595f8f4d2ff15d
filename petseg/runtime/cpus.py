"""CPUs and memory available to this process. Imports no TensorFlow."""

import os
from pathlib import Path

import psutil

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may use (os.process_cpu_count needs Python 3.13)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_memory() -> int:
    """Returns the bytes of memory that this process may use: what is available, within its container's limit."""
    available = int(psutil.virtual_memory().available)
    try:
        return min(available, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return available
