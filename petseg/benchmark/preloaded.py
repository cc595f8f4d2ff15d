"""What the processes of the benchmark have loaded when they start; loading uses no device yet."""

from petseg.runtime import startup

startup.load_tensorflow()

from petseg.benchmark import gpu_parts  # noqa: E402, F401 (loads all that the others need)
