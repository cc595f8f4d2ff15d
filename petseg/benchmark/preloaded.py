"""Modules that the benchmark's processes have loaded when they start; they look for GPUs themselves."""

from petseg.runtime import startup

startup.load_tensorflow(find_gpus=False)

from petseg.benchmark import gpu_parts  # noqa: E402, F401 (loads all that the others need)
