"""A trained run in its work directory, opened for scoring, prediction or export.

TensorFlow is imported only where it is needed, because exported runs are used without it.
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petseg import config as config_lib, custom_code
from petseg.classes import Classes
from petseg.config import Config, DataConfig
from petseg.config.data_config import NO_WEIGHTS
from petseg.config.eval_config import ScoreConfig
from petseg.config.options import SCORING
from petseg.errors import CheckpointError, ConfigError
from petseg.runs import checkpoint_files
from petseg.runs.work_directory import WorkDirectory

if TYPE_CHECKING:
    import keras

    from petseg.runs.training_data_record import TrainingData

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run, complete or still training, whose checkpoints are used."""

    workdir: WorkDirectory  # work directory of the run
    config: Config  # config of the run, with the precision, data folder and cache of the flags of eval.py
    classes: Classes  # classes of the run
    averaged: bool  # whether to use its averaged weights instead of the trained ones
    logit_adjustment: bool = False  # whether to undo its class weights in the logits

    @classmethod
    def open(cls, workdir: WorkDirectory, score: ScoreConfig) -> "TrainedRun":
        """Opens the run in a work directory.

        Raises WorkDirectoryError if there is no run, and ConfigError if --ema is given but the run has no averaged
        weights, or --allow_code is missing.
        """
        config = workdir.load_config()
        for flag, reference in config_lib.code_references(config, [SCORING]).items():
            if not score.allow_code:
                raise ConfigError(
                    f"{workdir.path}: its {flag} is the code {reference}; --allow_code must be given to run it"
                )
        workdir.check_code(config, [SCORING])
        if score.ema and not config.optimizer.keeps_averages:
            raise ConfigError(f"--ema: {workdir.path} kept no averaged weights (its --ema_decay is 0)")
        if config.optimizer.keeps_averages and not score.ema:
            logger.info("%s has averaged weights too; --ema uses them", workdir.path)
        if score.logit_adjustment and workdir.load_class_weights() is None:
            raise ConfigError(f"--logit_adjustment: {workdir.path} must be a run with --class_weights")
        config = with_score_options(config, score)
        return cls(workdir, config, workdir.load_classes(), score.ema, score.logit_adjustment)

    @classmethod
    def open_to_compare(cls, workdir: WorkDirectory, score: ScoreConfig) -> "TrainedRun":
        """Opens a run of --compare; --ema and --logit_adjustment apply if it has averaged weights and class weights.

        Raises WorkDirectoryError if there is no run.
        """
        keeps_averages = workdir.load_config().optimizer.keeps_averages
        adjusted = score.logit_adjustment and workdir.load_class_weights() is not None
        score = dataclasses.replace(score, ema=score.ema and keeps_averages, logit_adjustment=adjusted)
        return cls.open(workdir, score)

    @property
    def name(self) -> str:
        return str(self.workdir.path)

    @property
    def members(self) -> "tuple[TrainedRun]":
        return (self,)

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        return self.workdir.load_class_weights()

    @property
    def figures(self) -> Path:
        return self.workdir.figures

    @property
    def training_data(self) -> "TrainingData | None":
        """The record of the data that the run was trained on; None for runs of older versions.

        Raises WorkDirectoryError if it cannot be read.
        """
        from petseg.runs.training_data_record import TrainingData

        return TrainingData.read(self.workdir.data_file)

    @property
    def weights(self) -> str:
        """Kind of the weights: "averaged" or "trained", perhaps with "-adjusted"."""
        kind = "averaged" if self.averaged else "trained"
        return f"{kind}-adjusted" if self.logit_adjustment else kind

    def results_file(self, split: str, step: int, *differences: str) -> Path:
        """Path of the results file of a split at a step; `differences` name settings that differ from training."""
        from petseg.reporting.summaries import EMA

        kinds = {EMA: self.averaged, "adjusted": self.logit_adjustment}
        parts = [kind for kind, is_used in kinds.items() if is_used]
        return self.workdir.results_file(split, step, ".".join([*parts, *differences]))

    def checkpoint(self, which: str, *, intact: bool = True) -> str:
        """Path of the checkpoint that --checkpoint names: `latest`, `best` or a path.

        With `intact`, the latest is the newest one that can be read, which needs TensorFlow. Raises CheckpointError if
        there is none.
        """
        newest = checkpoint_files.newest
        if intact:
            from petseg.runs.checkpoints import newest_intact as newest
        return checkpoint_files.resolve_checkpoint(self.workdir.checkpoints, self.workdir.best, which, newest)

    def all_checkpoints(self) -> list[str]:
        """Paths of the run's latest checkpoints, oldest first. Raises CheckpointError if there is none."""
        paths = [self.path_of(step) for step in reversed(checkpoint_files.steps(self.workdir.checkpoints))]
        if not paths:
            raise CheckpointError(f"--checkpoint=all: there is no checkpoint in {self.workdir.checkpoints} yet")
        return paths

    def path_of(self, step: int) -> str:
        return checkpoint_files.path_of(self.workdir.checkpoints, step)

    def model_card(self, checkpoint: str, split: str, step: int) -> dict[str, Any]:
        """Content of a model card: classes, checkpoint, scores on a split at a step, and config.json."""
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
        """Builds the network, for `restore`; call it inside ``strategy.scope()`` if there is one."""
        from petseg.runs import building

        return building.build_model(self.config, self.classes)

    def restore(self, path: str, model: "keras.Model") -> int:
        """Restores the trained or averaged weights from a checkpoint; returns its step.

        Raises CheckpointError if the checkpoint is damaged, belongs to another model, or has no averages, and
        ConfigError if its logits cannot be adjusted.
        """
        from petseg.models import logit_adjustment
        from petseg.runs import building

        step = building.restore(path, self.config, model, averaged=self.averaged)
        if self.logit_adjustment:
            logit_adjustment.adjust_logits(model, self.class_weights or ())
        return step


def with_score_options(config: Config, score: ScoreConfig) -> Config:
    """The config of a run with the precision, data folder and cache of the flags of eval.py."""
    data = {
        "data_dir": score.data_dir or config.data.data_dir,
        **weights_to_score(config.data, score.weight_files, score.weight_feature, score_weights=score.score_weights),
        "cache": config.data.cache if score.cache == "run" else score.cache,
        "cache_dir": score.cache_dir or config.data.cache_dir,
        "data_service": "",  # it makes training batches only
        "on_bad_example": "stop",  # a score must cover all examples
    }
    precision = config.compute.precision if score.precision == "run" else score.precision
    return config.changed(data=data, compute={"precision": precision})


def weights_to_score(
    data: DataConfig, weight_files: str = "", weight_feature: str = "", *, score_weights: bool = False
) -> dict[str, Any]:
    """Data flags: where the weight maps to score with are, those of the run if not given, and whether scores count."""
    if NO_WEIGHTS in (weight_files, weight_feature):
        without = NO_WEIGHTS if custom_code.is_reference(data.dataset) else ""
        return {"weight_files": without, "weight_feature": "", "weight_scale": 0.0, "score_weights": score_weights}
    return {
        "weight_files": weight_files or data.weight_files,
        "weight_feature": weight_feature or data.weight_feature,
        "score_weights": score_weights or data.score_weights,
    }
