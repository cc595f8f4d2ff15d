"""Utilisation and memory of the GPUs as NVIDIA's driver sees them (NVML); needs `nvidia-ml-py`."""

import functools
import os
from typing import Any

import tensorflow as tf

MEBIBYTE = 2**20


def scalars() -> dict[str, float]:
    """Mean utilisation and highest memory in use, in MiB, of the visible GPUs, by tag; empty where NVML is missing."""
    handles = visible_handles()
    if not handles:
        return {}
    import pynvml

    try:
        busy = [pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100 for handle in handles]
        used = [pynvml.nvmlDeviceGetMemoryInfo(handle).used / MEBIBYTE for handle in handles]
    except pynvml.NVMLError:  # parts of a GPU (MIG) have no utilisation
        return {}
    return {"speed/gpu_utilisation": sum(busy) / len(busy), "memory/device_in_use": max(used)}


@functools.cache
def visible_handles() -> tuple[Any, ...]:
    """NVML's handles of the GPUs that TensorFlow sees; empty without NVML."""
    numbers = [int(device.name.rsplit(":", 1)[1]) for device in tf.config.get_visible_devices("GPU")]
    if not numbers:
        return ()
    try:
        import pynvml
    except ImportError:
        return ()
    # TensorFlow counts the GPUs that CUDA_VISIBLE_DEVICES leaves, NVML those of the machine.
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    try:
        pynvml.nvmlInit()
        return tuple(_handle(pynvml, named[number] if named else str(number)) for number in numbers)
    except (pynvml.NVMLError, IndexError):
        return ()


def _handle(pynvml: Any, name: str) -> Any:
    """The handle of a GPU by its number or its UUID."""
    if name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)
