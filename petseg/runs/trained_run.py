"""A run in its work directory, opened to use what it trained: with which config, data, checkpoint and weights.

TensorFlow is imported where it is needed, for a run that was exported can be used without.
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petseg.classes import Classes
from petseg.config import Config
from petseg.config.eval_config import ScoreConfig
from petseg.errors import CheckpointError, ConfigError
from petseg.runs import checkpoint_files
from petseg.runs.work_directory import WorkDirectory

if TYPE_CHECKING:
    import keras

    from petseg.data.examples import Examples
    from petseg.runs.training_data import TrainingData

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A finished run, or one that goes on.

    Attributes:
      workdir: work directory of the run.
      config: config of the run, with the precision, the data folder and the cache that are asked for instead.
      classes: the classes that the run tells apart.
      averaged: whether its averaged weights are used, and not those that were trained.
    """

    workdir: WorkDirectory
    config: Config
    classes: Classes
    averaged: bool

    @classmethod
    def open(cls, workdir: WorkDirectory, score: ScoreConfig) -> "TrainedRun":
        """Opens the run in a work directory, as it is asked for.

        Raises:
          WorkDirectoryError: if there is no run.
          ConfigError: if averaged weights are asked for, of which it has none, or it needs code that is not allowed.
        """
        config = workdir.load_config()
        if config.model.network:
            if not score.allow_code:
                raise ConfigError(
                    f"{workdir.path}: its network is the code {config.model.network}; --allow_code must be given to "
                    "run that"
                )
            workdir.check_network(config)
        if score.ema and not config.optimizer.ema_decay:
            raise ConfigError(f"--ema: {workdir.path} kept no averaged weights (its --ema_decay is 0)")
        if config.optimizer.ema_decay and not score.ema:
            logger.info("%s has averaged weights too; --ema uses them", workdir.path)
        return cls(workdir, with_score_options(config, score), workdir.load_classes(), averaged=score.ema)

    @classmethod
    def open_to_compare(cls, workdir: WorkDirectory, score: ScoreConfig) -> "TrainedRun":
        """Opens a run that another one is compared with; of its averaged weights, if it has any.

        Raises:
          WorkDirectoryError: if there is no run.
        """
        has_averages = workdir.load_config().optimizer.ema_decay > 0
        return cls.open(workdir, dataclasses.replace(score, ema=score.ema and has_averages))

    @property
    def training_data(self) -> "TrainingData | None":
        """What is known of the data that the run was trained on; None if nothing is.

        Raises:
          WorkDirectoryError: if the file that says so cannot be read.
        """
        from petseg.runs.training_data import TrainingData

        return TrainingData.read(self.workdir.data_file)

    @property
    def weights(self) -> str:
        """Which weights are used, in words."""
        return "averaged" if self.averaged else "trained"

    def results_file(self, split: str, step: int, *differences: str) -> Path:
        """The file of the scores at a step.

        Args:
          split: name of the split that is scored.
          step: step of the checkpoint.
          *differences: short names of what is done otherwise than in training; none where training wrote the scores.
        """
        from petseg.reporting.summaries import EMA

        parts = [EMA, *differences] if self.averaged else differences
        return self.workdir.results_file(split, step, ".".join(parts))

    def load(self, split: str) -> "Examples":
        """The examples of a split, kept as the config's `cache` says."""
        from petseg.data import loading

        return loading.load(self.config.data, split, self.classes)

    def checkpoint(self, which: str, *, intact: bool = True) -> str:
        """The path of a checkpoint: the `latest`, the `best`, or a path.

        Args:
          which: which one.
          intact: whether the latest must be one that can be read, which only TensorFlow can tell.

        Raises:
          CheckpointError: if there is none.
        """
        if intact:
            from petseg.runs import checkpoints

            return checkpoints.resolve_checkpoint(self.workdir.checkpoints, self.workdir.best, which)
        return checkpoint_files.resolve_checkpoint(
            self.workdir.checkpoints, self.workdir.best, which, checkpoint_files.newest
        )

    def all_checkpoints(self) -> list[str]:
        """The paths of the checkpoints that the run keeps as it goes, oldest first.

        Raises:
          CheckpointError: if there is none.
        """
        paths = [self.path_of(step) for step in reversed(self.steps())]
        if not paths:
            raise CheckpointError(f"--checkpoint=all: there is no checkpoint in {self.workdir.checkpoints} yet")
        return paths

    def steps(self) -> list[int]:
        """The steps at which there are checkpoints now, newest first."""
        return checkpoint_files.steps(self.workdir.checkpoints)

    def path_of(self, step: int) -> str:
        """The path of the checkpoint of a step."""
        return checkpoint_files.path_of(self.workdir.checkpoints, step)

    def model_card(self, checkpoint: str, split: str, step: int) -> dict[str, Any]:
        """What a model card says of the run: its classes, its scores on a split at a step, and its config.json."""
        results_file = self.results_file(split, step)
        return {
            "classes": self.classes.to_dict()["classes"],
            "checkpoint": checkpoint,
            "step": step,
            "weights": self.weights,
            "scores": json.loads(results_file.read_text()) if results_file.exists() else None,
            "run": json.loads(self.workdir.config_file.read_text()),
        }

    def build_model(self) -> "keras.Model":
        """The network, to be filled by `restore`; inside ``strategy.scope()`` where there is one."""
        from petseg.runs import building

        return building.build_model(self.config, self.classes)

    def restore(self, path: str, model: "keras.Model") -> int:
        """Fills the network with the weights that are used, as a checkpoint has them; returns their step.

        Raises:
          CheckpointError: if the checkpoint is damaged, or of another model, or without averages.
        """
        from petseg.runs import building

        return building.restore(path, self.config, model, averaged=self.averaged)


def with_score_options(config: Config, score: ScoreConfig) -> Config:
    """The config of a run with the precision, the data folder and the cache that are asked for instead."""
    data = {
        "data_dir": score.data_dir or config.data.data_dir,
        "cache": config.data.cache if score.cache == "run" else score.cache,
        "cache_dir": score.cache_dir or config.data.cache_dir,
        "data_service": "",  # which makes training batches
        "on_bad_example": "stop",  # a score is of all examples, or it is none
    }
    precision = config.compute.precision if score.precision == "run" else score.precision
    return config.changed(data=data, compute={"precision": precision})
