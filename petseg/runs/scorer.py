"""Scores checkpoints of one run, or of an ensemble of runs, on a split."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from petseg.config.eval_config import ScoreConfig
from petseg.data import input_pipeline, loading, subsampling
from petseg.evaluation import large_splits, metrics
from petseg.evaluation.evaluation import Evaluation
from petseg.evaluation.keras_runner import KerasRunner
from petseg.evaluation.results import image_rows, split_results
from petseg.evaluation.tiled_inference import AnySizeModel
from petseg.runs import building
from petseg.runs.ensemble import SEPARATOR, Ensemble
from petseg.runs.open_trained_run import Run
from petseg.runtime.signals import StopSignals
from petseg.runtime.strategies import Placement
from petseg.training.stop_requests import StopRequests

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class CheckpointScores:
    path: str  # path of the checkpoint
    # counts at the model's resolution and, with --resolution=native, at native resolution
    evaluations: list[Evaluation]
    results: list[dict[str, Any]]  # content of the results file of each evaluation
    files: list[Path | None]  # path of each results file; None for packed weights, which have none
    rows: list[dict[str, Any]]  # scores of each image at the last resolution; empty without --csv


class Scorer:
    """Scores checkpoints of one run on a split.

    `sample_seed` draws the sample of --eval_examples; it is the same for all runs that are compared.
    """

    def __init__(
        self, run: Run, score: ScoreConfig, split: str, placement: Placement, signals: StopSignals, *, sample_seed: int
    ):
        self.run, self._score, self._split, self._signals = run, score, split, signals
        self._tile = score.tile_size(run.config.data)
        self._own_scores = metrics.own(run.config.extension.scores)
        self.examples = subsampling.subsample(
            loading.load(run.config.data, split, run.classes), score.eval_examples, sample_seed
        )
        with input_pipeline.naming_lost_files(self.examples):
            loading.check_labels(self.examples, run.config.data, flag="--split=", split=split)
        if score.csv and large_splits.is_large(len(self.examples), len(run.classes)):
            logger.warning("--csv=%s: %d images are too many; it gets a sample of them", score.csv, len(self.examples))
        requests = StopRequests()
        signals.call(lambda: requests.stop.assign(1.0))
        with placement.strategy.scope():
            self._model = run.build_model()
            self._evaluator = building.build_evaluator(
                run.config,
                placement.strategy,
                self._model,
                self.examples,
                run.class_weights,
                requests,
                batch_size=score.batch_size,
                flip_tta=score.flip_tta,
                threshold=score.threshold,
                details=True,
            )
            data = run.config.data
            runner = KerasRunner(self._model, resize=data.resize, flip_tta=score.flip_tta, image_spec=data.image_spec)
            self._any_size = AnySizeModel(runner, tile=self._tile)

    def latest_or_best(self) -> str:
        """Path of the best checkpoint with --checkpoint=best, else of the latest."""
        return self.run.checkpoint("best" if self._score.checkpoint == "best" else "latest")

    def score(self, path: str) -> CheckpointScores:
        """Scores a checkpoint.

        Raises CheckpointError if it cannot be restored, and StoppedError if a signal came.
        """
        step, data = self.run.restore(path, self._model), self.run.config.data
        evaluations = {"{} x {}".format(*data.size): self._evaluator.evaluate()}
        if self._score.resolution == "native":
            drawn = self.examples.sampling
            ids = subsampling.positions(drawn["of"], len(self.examples), drawn["seed"]) if drawn else None
            pairs = loading.native_pairs(data, self._split, self.run.classes, ids=ids)
            tiles = " in tiles of {} x {}".format(*self._tile) if self._tile else ""
            native = self._evaluator.evaluate_native(pairs, self._any_size.logits)
            evaluations[f"native resolution{tiles}"] = native
        complete = [self._complete(evaluation) for evaluation in evaluations.values()]
        results = [
            self._results(evaluation, path, step, resolution)
            for resolution, evaluation in zip(evaluations, complete, strict=True)
        ]
        files = [self.run.results_file(self._split, step, *self._differences(i > 0)) for i in range(len(results))]
        names, groups = self.examples.names, self.examples.groups
        rows = image_rows(complete[-1], self.run.classes, names, groups) if self._score.csv else []
        return CheckpointScores(path, complete, results, files, [{"step": step, **row} for row in rows])

    def predictions(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Predictions of the weights that were scored last, for examples spread evenly over the split.

        Returns images for display, uint8 [N, H, W, 3], masks [N, H, W], predicted class ids [N, H, W], names.
        """
        ids = np.unique(np.linspace(0, len(self.examples) - 1, count).round().astype(int))
        images, masks = self.examples.read(ids)
        classes, _ = self._evaluator.predict(images)
        shown = self.run.config.data.image_spec.shown(images)
        return shown, masks[..., 0], classes, self.examples.names_of(ids.tolist())

    def _differences(self, native: bool) -> list[str]:
        """Short names of the settings that differ from evaluations during training."""
        precision, tile = self._score.precision, self._score.tile.replace(",", "x")
        differences = {
            f"sample{len(self.examples)}": bool(self.examples.sampling),
            "weighted": self._score.score_weights,
            "flip": self._score.flip_tta,
            f"threshold{self._score.threshold:g}": self._score.threshold > 0,
            precision: precision != "run",
            "native": native,
            f"tile{tile}": native and tile not in ("", "0"),
        }
        return [name for name, is_so in differences.items() if is_so]

    def _results(self, evaluation: Evaluation, path: str, step: int, resolution: str) -> dict[str, Any]:
        groups, sampled = self.examples.groups, self.examples.sampling
        scores = split_results(
            evaluation, step, self._split, self.run.classes, resolution=resolution, groups=groups, sample=sampled,
            own_scores=self._own_scores,
        )  # fmt: skip
        members = {"ensemble": path.split(SEPARATOR)} if isinstance(self.run, Ensemble) else {}
        return {**scores, "weights": self.run.weights, **members}

    def _complete(self, evaluation: Evaluation | None) -> Evaluation:
        if evaluation is None:
            raise self._signals.stopped("before all examples were scored; nothing was written")
        return evaluation
