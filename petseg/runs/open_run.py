"""Opens a trained run, in a work directory or a file of packed weights, and loads its model. Imports no TensorFlow."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from petseg.config.eval_config import PACKAGED, ScoreConfig
from petseg.errors import WorkDirectoryError
from petseg.runs import packed_run
from petseg.runs.packed_run import PackedRun
from petseg.runs.trained_run import TrainedRun
from petseg.runs.work_directory import WorkDirectory

if TYPE_CHECKING:
    import keras


def open_run(score: ScoreConfig) -> TrainedRun | PackedRun:
    """Opens the trained run that --workdir or --pretrained names.

    Raises:
      PetsegError: if there is none.
    """
    if score.pretrained:
        return PackedRun.open(packed_run.packaged_file(PACKAGED), score)
    source = score.workdir
    if file := packed_run.packed_file(source):
        return PackedRun.open(file, score)
    if not Path(source).exists() and not os.path.dirname(source):
        names = ", ".join(packed_run.NAMES) or "none"
        raise WorkDirectoryError(
            f"{source}: must be a work directory, a file of packed weights (*{packed_run.SUFFIX}), or the name of a "
            f"packaged model; there are {names}"
        )
    return TrainedRun.open(WorkDirectory(source), score)


def load_model(run: TrainedRun | PackedRun, checkpoint: str) -> "tuple[keras.Model, int]":
    """Builds a run's network, restores a checkpoint and returns both the network and its training step.

    Raises:
      CheckpointError: if the checkpoint is damaged, belongs to another model, or has no averaged weights.
    """
    model = run.build_model()
    return model, run.restore(checkpoint, model)
