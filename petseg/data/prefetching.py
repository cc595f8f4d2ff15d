"""Parallelism and prefetching of the input pipeline, from the host's cores, replicas and memory."""

import math

from petseg.runtime import cpus

DECODE_BYTES = 360 * 2**20  # to resize an image of 24 megapixels
MOST_OF_A_PART = 8  # images of one part of a batch decoded in parallel; parts are made in parallel too
BATCHES_READY = 2
# Fractions of the available memory for images being decoded, and for batches in progress and prefetched.
DECODING_SHARE, BATCHES_SHARE = 1 / 4, 1 / 8


def decodes_at_once() -> int:
    """Number of images that a host decodes in parallel: its cores, unless that takes too much memory."""
    return max(1, min(cpus.usable_cpus(), _memory_bound()))


def decodes_of_a_part() -> int:
    """Number of images of one replica's part of a batch that are decoded in parallel (--cache=none)."""
    return max(1, min(_decodes_in_all() // 2, MOST_OF_A_PART))


def parts_at_once(local_replicas: int, examples: int, bytes_of_part: int) -> tuple[int, int]:
    """Numbers of parts of batches that a host makes in parallel, and prefetches."""
    made = max(2, _decodes_in_all() // min(examples, decodes_of_a_part()), min(local_replicas, _decodes_in_all()))
    ready = BATCHES_READY * local_replicas
    fitting = int(BATCHES_SHARE * cpus.usable_memory()) // max(bytes_of_part, 1)
    scale = min(1.0, fitting / (made + ready))
    return max(2, math.floor(made * scale)), max(2, math.floor(ready * scale))


def _decodes_in_all() -> int:
    """Maximum number of images being decoded for all parts: two per core, so that cores stay busy when a part ends."""
    return max(2, min(2 * cpus.usable_cpus(), _memory_bound()))


def _memory_bound() -> int:
    return int(DECODING_SHARE * cpus.usable_memory()) // DECODE_BYTES
