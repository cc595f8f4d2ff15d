"""Modules that the benchmark's processes have loaded when they start; importing them uses no device."""

from petseg.runtime import startup

startup.load_tensorflow()

from petseg.benchmark import gpu_parts  # noqa: E402, F401 (loads all that the others need)
