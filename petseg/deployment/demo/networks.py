"""Loads and caches the networks that the demo page offers."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from petseg.errors import CheckpointError, ConfigError, PetsegError
from petseg.runs.packed_run import PackedRun
from petseg.runs.trained_run import TrainedRun

if TYPE_CHECKING:
    from petseg.deployment.segmenter import Segmenter

logger = logging.getLogger(__name__)
CHECKPOINTS = ("best", "latest")
Version = tuple[str, int, int] | None


class Networks:
    """The networks of a run by checkpoint, weights and flip averaging, loaded on demand.

    Raises CheckpointError if the run has no checkpoint.
    """

    def __init__(self, source: str, run: TrainedRun | PackedRun, *, allow_code: bool = False):
        self._source, self._allow_code, self.run = source, allow_code, run
        self.checkpoints: tuple[str, ...] = ()
        self.has_averages = False
        if isinstance(run, TrainedRun):
            self.checkpoints = tuple(which for which in CHECKPOINTS if self._exists(which))
            self.has_averages = run.config.optimizer.keeps_averages
            if not self.checkpoints:
                raise CheckpointError(f"--workdir={source}: there is no checkpoint yet")
        self._loaded: dict[tuple[str, bool, bool], tuple[Version, Segmenter]] = {}  # eight at most

    def __call__(self, checkpoint: str, averaged: bool, flip_tta: bool) -> "Segmenter":
        """Returns a network, loaded at its first use and again after a newer checkpoint was saved.

        Raises PetsegError if the checkpoint is unknown or cannot be read.
        """
        if self.checkpoints and checkpoint not in self.checkpoints:
            raise ConfigError(f"checkpoint: got {checkpoint!r}; must be one of {', '.join(self.checkpoints)}")
        key = (checkpoint if self.checkpoints else "best", averaged and self.has_averages, flip_tta)
        version, held = self._version(key[0]), self._loaded.get(key)
        if held is None or held[0] != version:
            try:
                held = (version, self._load(*key))
            except PetsegError as error:
                if held is None:
                    raise
                logger.warning("still serving the weights of step %d: %s", held[1].step, error)
                held = (version, held[1])
            self._loaded[key] = held
        return held[1]

    def _load(self, checkpoint: str, averaged: bool, flip_tta: bool) -> "Segmenter":
        from petseg.deployment.segmenter import load  # imports TensorFlow

        segmenter = load(
            self._source, checkpoint=checkpoint, ema=averaged, flip_tta=flip_tta, allow_code=self._allow_code
        )
        spec = self.run.config.data.image_spec
        # Compiles it, so that the first photograph is not slow.
        segmenter.predictor(np.zeros([32, 32, spec.channels], spec.travels_as))
        return segmenter

    def _version(self, checkpoint: str) -> Version:
        """Identifies the file of a checkpoint without reading it; None if it cannot be found."""
        try:
            path = Path(self.run.checkpoint(checkpoint, intact=False))
            file = path if path.is_file() else path.with_name(f"{path.name}.index")
            status = file.stat()
        except (OSError, CheckpointError):
            return None
        return str(path), status.st_mtime_ns, status.st_size

    def _exists(self, checkpoint: str) -> bool:
        try:
            return bool(self.run.checkpoint(checkpoint))
        except CheckpointError:
            return False
