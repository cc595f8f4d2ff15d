"""What the process has loaded from which `programs_in_forks` forks programs."""
# ruff: noqa: E402, F401

from petseg.runtime import startup

startup.load_tensorflow()
startup.collect_garbage_rarely()

from petseg.data import synthetic_pets
from petseg.deployment import export_command, prediction_command
from petseg.runs import scoring, train
