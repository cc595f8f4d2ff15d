"""Scores what a run has trained: checkpoints as they are, as they come, or beside those of another run."""

import csv
from petseg.data import example_order
from petseg.evaluation import confidence_intervals
from petseg.evaluation import score_tables
import dataclasses
import io
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.evaluation import analysis
from petseg.runs import building, checkpoints
from petseg.deployment import export as export_lib, prediction
from petseg.training import trainer
from petseg.reporting import pictures
from petseg.runs.schedule import Clock
from petseg.config import Config
from petseg.classes import CLASS_NAMES
from petseg.data import catalog, decoding, input_pipeline
from petseg.runtime.strategies import Placement
from petseg.errors import CheckpointError, ConfigError, DataError, WorkDirectoryError
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.evaluation.evaluator import Evaluation
from petseg.runs.signals import StopSignals
from petseg.runs.work_directory import WorkDirectory
from petseg.files import write_bytes
from petseg.files import write_text
from petseg.files import write_json

logger = logging.getLogger(__name__)
COMPARED_IMAGES, CALIBRATION_IMAGES = 64, 100
SHEET_EXAMPLES = 12


def evaluate(config: EvalConfig) -> list[dict[str, Any]]:
    """Scores checkpoints of a run on a split; writes a results file, and prints a table, for each.

    Returns:
      the results of each checkpoint, and of each resolution, in the order in which they were scored.

    Raises:
      PetsegError: if work directory, checkpoint or split cannot be used, or a signal came.
    """
    score = config.score
    workdir = WorkDirectory(score.workdir)
    if score.csv and not Path(score.csv).absolute().parent.is_dir():
        raise ConfigError(f"--csv={score.csv}: its folder does not exist")
    with StopSignals() as signals:
        if score.watch:
            _wait_for_config(workdir, score)
        run = _load_run(workdir, score)
        paths = _watch(workdir, score) if score.watch else _find(workdir, score.checkpoint)
        split = _checked_split(run, score)
        placement = building.set_up_runtime(run, config.distribution)
        if score.watch and placement.cluster is not None:
            raise ConfigError("--watch: takes a single process, for those of a cluster might not see the same files")
        scorer = Scorer(workdir, score, split, placement, signals)
        other = _other(score, split, placement, signals)
        found, rows = [], []
        for path in paths:
            try:
                scored = scorer.score(path)
            except CheckpointError as error:
                if not score.watch:
                    raise
                logger.warning("skipped: %s", error)  # the run deletes old checkpoints while we read
                continue
            theirs = None if other is None else _compare(scored, scorer.names, other)
            if placement.is_chief:
                _write(workdir, scored, scorer.variant)
                if theirs is not None and other is not None:
                    _print_comparison(scored, theirs)
                    _draw_comparison(workdir, scorer, other)
            found += scored.results
            rows += scored.rows
        if score.csv and placement.is_chief:
            _write_csv(score.csv, rows)
        placement.barrier()
    return found


def predict(config: EvalConfig) -> list[Path]:
    """Writes masks for photographs in files.

    Returns:
      the masks.

    Raises:
      PetsegError: if work directory or checkpoint cannot be used, nothing matches, or some files cannot be read.
    """
    score = config.score
    workdir = WorkDirectory(score.workdir)
    run = _load_run(workdir, score)
    (path,) = _find(workdir, score.checkpoint)
    prediction.find_files(score.predict)  # before TensorFlow and the model take their time
    with StopSignals():
        building.set_up_runtime(run, config.distribution, one_device=True)
        model = building.build_model(run, None)
        building.restore(path, run, model, averaged=score.ema)
        predictor = prediction.Predictor(model, flip_tta=score.flip_tta)
        return prediction.predict_files(predictor, score.predict, score.output_dir, cutout=score.cutout)


def export(config: EvalConfig) -> list[export_lib.Agreement]:
    """Writes the model in other formats and compares each with the original on images of the evaluation split.

    Returns:
      how close each is.

    Raises:
      PetsegError: if work directory or checkpoint cannot be used, a package is missing, or an export disagrees.
    """
    score = config.score
    workdir = WorkDirectory(score.workdir)
    run = _load_run(workdir, score)
    (path,) = _find(workdir, score.checkpoint)
    export_lib.check_formats(score.export_formats())
    data, data_dir = run.data, _data_dir(run, score)
    split = score.split or data.eval_split
    with StopSignals():
        building.set_up_runtime(run, config.distribution, one_device=True)
        examples = decoding.load(data.dataset, split, data.image_size, data_dir).images[:COMPARED_IMAGES]
        calibration = decoding.load(data.dataset, data.train_split, data.image_size, data_dir).images
        model = building.build_model(run, None)
        step = building.restore(path, run, model, averaged=score.ema)
        file = workdir.results_file(split, step, "ema" if score.ema else "")
        card = {
            "classes": CLASS_NAMES,
            "checkpoint": path,
            "weights": _kind(score),
            "scores": json.loads(file.read_text()) if file.exists() else None,
            "run": json.loads(workdir.config_file.read_text()),
        }
        agreements = export_lib.export(
            model,
            score.export_formats(),
            score.output_dir,
            examples,
            calibration=calibration[:: max(1, len(calibration) // CALIBRATION_IMAGES)],
            card=card,
        )
    print(export_lib.table(agreements))
    return agreements


@dataclasses.dataclass
class Scored:
    """A checkpoint's scores.

    Attributes:
      path: of the checkpoint.
      evaluations: what was counted, at the model's resolution, then at others.
      results: of each.
      rows: of each image, at the last resolution.
    """

    path: str
    evaluations: list[Evaluation]
    results: list[dict[str, Any]]
    rows: list[dict[str, Any]]


class Scorer:
    """Scores checkpoints of one run on a split.

    Args:
      workdir: the run's.
      score: what is asked.
      split: what to score.
      placement: the devices.
      signals: to stop.

    Attributes:
      workdir: see above.
      names: of the examples.
      variant: how the scores differ from those of training, for the names of files; empty if they do not.
    """

    def __init__(
        self, workdir: WorkDirectory, score: ScoreConfig, split: str, placement: Placement, signals: StopSignals
    ):
        run = _load_run(workdir, score)
        self._run, self._score, self._split = run, score, split
        self.workdir, self._signals = workdir, signals
        self._data_dir = _data_dir(run, score)
        self._examples = decoding.load(run.data.dataset, split, run.data.image_size, self._data_dir)
        self.names = self._examples.names
        changed = {"ema": score.ema, "flip": score.flip_tta, score.precision: score.precision != "run"}
        self.variant = ".".join(name for name, is_so in changed.items() if is_so)
        requests = trainer.Requests()
        signals.call(lambda: requests.stop.assign(1.0))
        with placement.strategy.scope():
            self._model = building.build_model(run, None)
            self._evaluator = building.build_evaluator(
                run,
                placement.strategy,
                self._model,
                self._examples,
                workdir.load_class_weights(),
                requests,
                batch_size=score.batch_size,
                flip_tta=score.flip_tta,
                details=True,
            )

    def counterpart(self) -> str:
        """The best checkpoint if the best one was asked for, else the latest."""
        which = "best" if self._score.checkpoint == "best" else "latest"
        return checkpoints.find(self.workdir.checkpoints, self.workdir.best, which)

    def score(self, path: str) -> Scored:
        """Scores a checkpoint.

        Raises:
          CheckpointError: if it cannot be restored.
          StoppedError: if a signal came.
        """
        step = building.restore(path, self._run, self._model, averaged=self._score.ema)
        size = self._run.data.image_size
        evaluations = {f"{size} x {size}": self._evaluator.evaluate()}
        if self._score.resolution == "native":
            masks = decoding.native_masks(self._run.data.dataset, self._split, self._data_dir)
            evaluations["native resolution"] = self._evaluator.evaluate_native(masks)
        complete = [self._complete(evaluation) for evaluation in evaluations.values()]
        results = [
            self._results(evaluation, step, resolution)
            for resolution, evaluation in zip(evaluations, complete, strict=True)
        ]
        rows = analysis.rows(complete[-1], self.names, self._examples.groups)
        return Scored(path, complete, results, [{"step": step, **row} for row in rows])

    def predictions(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """What the weights that were scored last say of examples from all over the split.

        Returns:
          images uint8 [N, H, W, 3], masks and predicted class ids [N, H, W], names.
        """
        ids = np.unique(np.linspace(0, len(self.names) - 1, count).round().astype(int))
        images = self._examples.images[ids]
        classes, _ = self._evaluator.predict(images)
        return images, self._examples.masks[ids, ..., 0], classes, [self.names[i] for i in ids]

    def _results(self, evaluation: Evaluation, step: int, resolution: str) -> dict[str, Any]:
        groups = self._examples.groups
        scores = analysis.results(evaluation, step, self._split, resolution=resolution, groups=groups)
        return {**scores, "weights": _kind(self._score)}

    def _complete(self, evaluation: Evaluation | None) -> Evaluation:
        if evaluation is None:
            raise self._signals.stopped("before all examples were scored; nothing was written")
        return evaluation


def _kind(score: ScoreConfig) -> str:
    return "averaged" if score.ema else "trained"


def _load_run(workdir: WorkDirectory, score: ScoreConfig) -> Config:
    """The config of a run, with what is asked otherwise."""
    run = workdir.load_config()
    if score.ema and not run.optimizer.ema_decay:
        raise ConfigError(f"--ema: {workdir.path} kept no averaged weights (its --ema_decay is 0)")
    if run.optimizer.ema_decay and not score.ema:
        logger.info("%s has averaged weights too; --ema takes them", workdir.path)
    if score.precision == "run":
        return run
    return dataclasses.replace(run, compute=dataclasses.replace(run.compute, precision=score.precision))


def _data_dir(run: Config, score: ScoreConfig) -> str:
    return score.data_dir or run.data.data_dir


def _checked_split(run: Config, score: ScoreConfig) -> str:
    """The split to score, which must not be one that was trained on."""
    split, data_dir = score.split or run.data.eval_split, _data_dir(run, score)
    shared = catalog.overlap(run.data.dataset, split, run.data.train_split, data_dir)
    if shared and not score.allow_training_images:
        raise DataError(
            f"--split={split}: {shared} of its images were trained on ({run.data.train_split}); "
            "a score on them says little; --allow_training_images scores them all the same"
        )
    return split


def _find(workdir: WorkDirectory, which: str) -> list[str]:
    if which != "all":
        return [checkpoints.find(workdir.checkpoints, workdir.best, which)]
    paths = [str(workdir.checkpoints / f"{checkpoints.PREFIX}{s}") for s in checkpoints.steps(workdir.checkpoints)]
    if not paths:
        raise CheckpointError(f"--checkpoint=all: there is no checkpoint in {workdir.checkpoints} yet")
    return paths[::-1]


def _wait_for_config(workdir: WorkDirectory, score: ScoreConfig) -> None:
    """Waits for the run to begin."""
    deadline = time.monotonic() + score.watch_timeout
    while not workdir.config_file.is_file() and time.monotonic() < deadline:
        time.sleep(score.watch_interval)


def _watch(workdir: WorkDirectory, score: ScoreConfig) -> Iterator[str]:
    """The checkpoints of a run as they come, oldest first, each once, until the run is complete."""
    seen: set[int] = set()
    deadline = time.monotonic() + score.watch_timeout
    while True:
        for step in reversed(checkpoints.steps(workdir.checkpoints)):
            if step not in seen:
                seen.add(step)
                yield str(workdir.checkpoints / f"{checkpoints.PREFIX}{step}")
                deadline = time.monotonic() + score.watch_timeout
        if seen and max(seen) >= _last_step(workdir.load_config(), score):
            logger.info("%s is complete", workdir.path)
            return
        if time.monotonic() >= deadline:
            logger.warning("%s: no new checkpoint for %g s", workdir.path, score.watch_timeout)
            return
        time.sleep(score.watch_interval)


def _last_step(run: Config, score: ScoreConfig) -> int:
    count = catalog.size(run.data.dataset, run.data.train_split, _data_dir(run, score))
    return Clock.of(run.schedule, example_order.steps_per_epoch(count, run.data.batch_size)).total


def _compare(scored: Scored, names: tuple[str, ...], other: Scorer) -> Scored:
    """Scores the other run's checkpoint, and adds the comparison to the first one's results."""
    if other.names != names:
        raise DataError("--compare: the two runs were made with different data sets; their images cannot be paired")
    theirs = other.score(other.counterpart())
    parts = (scored.results, scored.evaluations, theirs.results, theirs.evaluations)
    for results, mine, its_results, its in zip(*parts, strict=True):
        comparison = confidence_intervals.compare(mine.confusion_matrices, its.confusion_matrices)
        results["comparison"] = {"other": theirs.path, "weights": its_results["weights"], **comparison}
    return theirs


def _other(score: ScoreConfig, split: str, placement: Placement, signals: StopSignals) -> Scorer | None:
    """What scores the run to compare with, its averaged weights only if it has any."""
    if not score.compare:
        return None
    workdir = WorkDirectory(score.compare)
    ema = score.ema and workdir.load_config().optimizer.ema_decay > 0
    return Scorer(workdir, dataclasses.replace(score, ema=ema), split, placement, signals)


def _draw_comparison(workdir: WorkDirectory, scorer: Scorer, other: Scorer) -> None:
    """Draws what two runs make of the same images, the other one first, as in before and after."""
    images, masks, mine, names = scorer.predictions(SHEET_EXAMPLES)
    *_, theirs, _ = other.predictions(SHEET_EXAMPLES)
    theirs = tf.image.resize(theirs[..., None], mine.shape[1:], method="nearest").numpy()[..., 0]
    first, second = (path.name for path in (other.workdir.path, workdir.path))
    titles = (first, second) if first != second else ("second", "first")
    sheet = pictures.comparison_sheet(images, masks, dict(zip(titles, (theirs, mine), strict=True)), names)
    file = workdir.figures / "comparison.png"
    write_bytes(file, pictures.to_png(sheet))
    print(f"pictures:   {file}")


def _print_comparison(scored: Scored, theirs: Scored) -> None:
    for results in theirs.results:
        print(score_tables.table(results))
        print(f"\ncheckpoint: {theirs.path}\n")
    names = [f"{each.path} ({each.results[0]['weights']} weights)" for each in (scored, theirs)]
    print(f"first: {names[0]}, second: {names[1]}")
    for results in scored.results:
        print(f"at {results['resolution']}: {score_tables.comparison_text(results['comparison'])}")


def _write(workdir: WorkDirectory, scored: Scored, variant: str) -> None:
    for i, results in enumerate(scored.results):
        parts = [variant, "native" if i else ""]
        file = workdir.results_file(results["split"], results["step"], ".".join(part for part in parts if part))
        write_json(file, results)
        print(score_tables.table(results))
        print(f"\ncheckpoint: {scored.path}\nresults:    {file}\n")


def _write_csv(path: str, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    try:
        write_text(Path(path), text.getvalue())
    except OSError as error:
        raise WorkDirectoryError(f"--csv={path}: cannot be written: {error.strerror}") from error
    print(f"images:     {path}")
