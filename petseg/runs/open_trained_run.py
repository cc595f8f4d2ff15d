"""Opens a trained run, in a work directory or a file of packed weights, and loads its model. Imports no TensorFlow."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from petseg.config.eval_config import PACKAGED, ScoreConfig
from petseg.errors import WorkDirectoryError
from petseg.runs import packed_run, run_groups
from petseg.runs.ensemble import Ensemble
from petseg.runs.packed_run import PackedRun
from petseg.runs.trained_run import TrainedRun
from petseg.runs.work_directory import WorkDirectory

if TYPE_CHECKING:
    import keras


Run = TrainedRun | PackedRun | Ensemble


def open_run(score: ScoreConfig) -> Run:
    """Opens the trained run that --workdir or --pretrained names; with --ensemble, several as one.

    Raises PetsegError if there is none.
    """
    if score.ensemble:
        found = run_groups.find_runs(score.workdir, "workdir")
        scores = (dataclasses.replace(score, workdir=str(workdir.path), ensemble=False) for workdir in found)
        return Ensemble(tuple(open_single(each) for each in scores))
    return open_single(score)


def open_single(score: ScoreConfig) -> TrainedRun | PackedRun:
    """Opens one trained run, as `open_run`."""
    if score.pretrained:
        return PackedRun.open(packed_run.packaged_file(PACKAGED), score)
    source = score.workdir
    if file := packed_run.packed_file(source):
        return PackedRun.open(file, score)
    if not Path(source).exists() and not os.path.dirname(source):
        raise WorkDirectoryError(
            f"{source}: must be a work directory, a file of packed weights (*{packed_run.SUFFIX}), or the name of a "
            f"packaged model ({', '.join(packed_run.NAMES) or 'none'})"
        )
    return TrainedRun.open(WorkDirectory(source), score)


def with_averages(score: ScoreConfig) -> ScoreConfig:
    """The flags with --ema if --workdir is that of a run with averaged weights, else without."""
    workdir = WorkDirectory(score.workdir)
    keeps_averages = workdir.config_file.is_file() and workdir.load_config().optimizer.keeps_averages
    return dataclasses.replace(score, ema=keeps_averages)


def load_model(run: Run, checkpoint: str) -> "tuple[keras.Model, int]":
    """Builds a run's network, restores a checkpoint and returns both the network and its training step.

    Raises CheckpointError if the checkpoint is damaged, belongs to another model, or has no averaged weights.
    """
    model = run.build_model()
    return model, run.restore(checkpoint, model)
