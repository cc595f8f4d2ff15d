"""Scores what a run has trained: checkpoints as they are, as they come, or beside those of another run."""

import contextlib
import csv
import dataclasses
import io
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.data import catalog, example_order, input_pipeline, loading, subsampling
from petseg.data.examples import Examples
from petseg.errors import CheckpointError, ConfigError, DataError
from petseg.evaluation import confidence_intervals, large_splits, score_tables
from petseg.evaluation.evaluator import Evaluation
from petseg.evaluation.keras_runner import KerasRunner
from petseg.evaluation.results import image_rows, split_results
from petseg.evaluation.tiled_inference import AnySizeModel
from petseg.files import explain_write_errors, write_bytes, write_json, write_text
from petseg.reporting import pictures
from petseg.runs import building, early_stopping, run_groups, training_data
from petseg.runs.packed_run import PackedRun
from petseg.runs.schedule import Schedule
from petseg.runs.trained_run import TrainedRun
from petseg.runs.work_directory import WorkDirectory
from petseg.runtime import process
from petseg.runtime.signals import StopSignals
from petseg.runtime.strategies import Placement
from petseg.training.stop_requests import StopRequests

logger = logging.getLogger(__name__)
SHEET_EXAMPLES = 12
MASKS_COMPARED_FIRST = 8  # before anything is scored; afterwards all are compared by their digests
DIFFERENT_TRUTH = (
    "so their scores cannot be compared image by image; --resolution=native scores all against the masks as drawn"
)


def evaluate(config: EvalConfig) -> list[dict[str, Any]]:
    """Scores checkpoints of a run on a split; writes a results file, and prints a table, for each.

    Returns:
      the results of each checkpoint, and of each resolution, in the order in which they were scored.

    Raises:
      PetsegError: if work directory, checkpoint or split cannot be used, or a signal came.
    """
    score = config.score
    workdir = run_groups.find_single_run(score.workdir, "workdir")
    check_csv_path(score)
    with StopSignals() as signals, contextlib.ExitStack() as stack:
        if score.watch:
            _wait_for_config(workdir, score)
        run = TrainedRun.open(workdir, score)
        paths = _paths(run, score)
        others = []
        if score.compare:
            others.append(TrainedRun.open_to_compare(run_groups.find_single_run(score.compare, "compare"), score))
        split = checked_common_split([run, *others], score)
        placement = process.set_up_runtime(run.config, config.distribution)
        stack.enter_context(placement.naming_lost_workers())
        if score.watch and placement.cluster is not None:
            raise ConfigError("--watch: must be a single process, for those of a cluster might not see the same files")
        seed = sample_seed([run, *others])
        scorer = Scorer(run, score, split, placement, signals, sample_seed=seed)
        other = Scorer(others[0], score, split, placement, signals, sample_seed=seed) if others else None
        if other is not None:
            check_pairing(scorer.examples, other.examples, native=score.resolution == "native")
        found, rows = [], []
        for path in paths:
            try:
                scored = scorer.score(path)
            except CheckpointError as error:
                if not score.watch:
                    raise
                logger.warning("skipped: %s", error)  # the run deletes old checkpoints while we read
                continue
            theirs = None if other is None else _compare(scored, other)
            if placement.is_chief:
                write_results(scored)
                if theirs is not None and other is not None:
                    _print_comparison(scored, theirs)
                    draw_comparison(scorer, other)
            found += scored.results
            rows += scored.rows
        if score.csv and placement.is_chief:
            write_csv(score.csv, rows)
        placement.leave_together()
    return found


@dataclasses.dataclass
class CheckpointScores:
    """A checkpoint's scores.

    Attributes:
      path: path of the checkpoint.
      evaluations: what was counted, at the model's resolution, then at others.
      results: content of the results file of each evaluation.
      files: path of each results file.
      rows: a row of scores for each image, at the last resolution; none without --csv.
    """

    path: str
    evaluations: list[Evaluation]
    results: list[dict[str, Any]]
    files: list[Path]
    rows: list[dict[str, Any]]


class Scorer:
    """Scores checkpoints of one run on a split.

    Args:
      run: the trained run.
      score: the flags that say how to score.
      split: name of the split to score.
      placement: devices and cluster to score on.
      signals: signals that stop it.
      sample_seed: seed of the sample of --eval_examples, one for all runs whose scores are to be compared.

    Attributes:
      run: the trained run.
      examples: the examples of the split that are scored.
    """

    def __init__(
        self,
        run: TrainedRun,
        score: ScoreConfig,
        split: str,
        placement: Placement,
        signals: StopSignals,
        *,
        sample_seed: int,
    ):
        self.run, self._score, self._split, self._signals = run, score, split, signals
        self._tile = score.tile_size(run.config.data)
        self.examples = subsampling.subsample(run.load(split), score.eval_examples, sample_seed)
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
                run.workdir.load_class_weights(),
                requests,
                batch_size=score.batch_size,
                flip_tta=score.flip_tta,
                details=True,
            )
            runner = KerasRunner(self._model, resize=run.config.data.resize, flip_tta=score.flip_tta)
            self._any_size = AnySizeModel(runner, tile=self._tile)

    def latest_or_best(self) -> str:
        """The best checkpoint if the best one was asked for, else the latest."""
        return self.run.checkpoint("best" if self._score.checkpoint == "best" else "latest")

    def score(self, path: str) -> CheckpointScores:
        """Scores a checkpoint.

        Raises:
          CheckpointError: if it cannot be restored.
          StoppedError: if a signal came.
        """
        step, data = self.run.restore(path, self._model), self.run.config.data
        evaluations = {"{} x {}".format(*data.size): self._evaluator.evaluate()}
        if self._score.resolution == "native":
            pairs = loading.native_pairs(data, self._split, self.run.classes, ids=self._sampled_ids())
            tiles = " in tiles of {} x {}".format(*self._tile) if self._tile else ""
            native = self._evaluator.evaluate_native(pairs, self._any_size.logits)
            evaluations[f"native resolution{tiles}"] = native
        complete = [self._complete(evaluation) for evaluation in evaluations.values()]
        results = [
            self._results(evaluation, step, resolution)
            for resolution, evaluation in zip(evaluations, complete, strict=True)
        ]
        files = [self.run.results_file(self._split, step, *self._differences(i > 0)) for i in range(len(results))]
        names, groups = self.examples.names, self.examples.groups
        rows = image_rows(complete[-1], self.run.classes, names, groups) if self._score.csv else []
        return CheckpointScores(path, complete, results, files, [{"step": step, **row} for row in rows])

    def predictions(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """What the weights that were scored last say of examples from all over the split.

        Returns:
          images uint8 [N, H, W, 3], masks and predicted class ids [N, H, W], names.
        """
        ids = np.unique(np.linspace(0, len(self.examples) - 1, count).round().astype(int))
        images, masks = self.examples.read(ids)
        classes, _ = self._evaluator.predict(images)
        return images, masks[..., 0], classes, self.examples.names_of(ids.tolist())

    def _sampled_ids(self) -> np.ndarray | None:
        """The positions in the split of the examples that are scored; None where all are."""
        drawn = self.examples.sampling
        return subsampling.positions(drawn["of"], len(self.examples), drawn["seed"]) if drawn else None

    def _differences(self, native: bool) -> list[str]:
        """What is done otherwise than in training."""
        precision, tile = self._score.precision, self._score.tile.replace(",", "x")
        differences = {
            f"sample{len(self.examples)}": bool(self.examples.sampling),
            "flip": self._score.flip_tta,
            precision: precision != "run",
            "native": native,
            f"tile{tile}": native and tile not in ("", "0"),
        }
        return [name for name, is_so in differences.items() if is_so]

    def _results(self, evaluation: Evaluation, step: int, resolution: str) -> dict[str, Any]:
        groups, sampled = self.examples.groups, self.examples.sampling
        scores = split_results(
            evaluation, step, self._split, self.run.classes, resolution=resolution, groups=groups, sample=sampled
        )
        return {**scores, "weights": self.run.weights}

    def _complete(self, evaluation: Evaluation | None) -> Evaluation:
        if evaluation is None:
            raise self._signals.stopped("before all examples were scored; nothing was written")
        return evaluation


def check_csv_path(score: ScoreConfig) -> None:
    """Raises ConfigError if --csv cannot be written."""
    if score.csv and not Path(score.csv).absolute().parent.is_dir():
        raise ConfigError(f"--csv={score.csv}: its folder does not exist")


def checked_split(run: TrainedRun | PackedRun, score: ScoreConfig) -> str:
    """The split to score, which the run must not have been trained on."""
    data = run.config.data
    split = score.split or data.eval_split
    if not score.allow_training_images:
        training_data.check_not_trained_on(split, data, run.classes, run.training_data)
    return split


def checked_common_split(runs: Sequence[TrainedRun], score: ScoreConfig) -> str:
    """The split on which all runs are scored, the first one's if none is named; none may have been trained on it."""
    split = checked_split(runs[0], score)
    for run in runs[1:]:
        checked_split(run, dataclasses.replace(score, split=split))
    return split


def sample_seed(runs: Sequence[TrainedRun]) -> int:
    """The seed of the sample of --eval_examples: the smallest of the runs, so their order does not matter."""
    return min(run.config.runtime.seed for run in runs)


def _wait_for_config(workdir: WorkDirectory, score: ScoreConfig) -> None:
    """Waits for the run to begin."""
    deadline = time.monotonic() + score.watch_timeout
    while not workdir.config_file.is_file() and time.monotonic() < deadline:
        time.sleep(score.watch_interval)


def _paths(run: TrainedRun, score: ScoreConfig) -> Iterable[str]:
    """The checkpoints to score."""
    if score.watch:
        return _watch(run, score)
    return run.all_checkpoints() if score.checkpoint == "all" else [run.checkpoint(score.checkpoint)]


def _watch(run: TrainedRun, score: ScoreConfig) -> Iterator[str]:
    """The checkpoints of a run as they come, oldest first, each once, until the run is complete."""
    seen: set[int] = set()
    deadline = time.monotonic() + score.watch_timeout
    while True:
        for step in reversed(run.steps()):
            if step not in seen:
                seen.add(step)
                yield run.path_of(step)
                deadline = time.monotonic() + score.watch_timeout
        if seen and _ends_at(run, max(seen)):
            logger.info("%s is complete", run.workdir.path)
            return
        if time.monotonic() >= deadline:
            logger.warning("%s: no new checkpoint for %g s", run.workdir.path, score.watch_timeout)
            return
        time.sleep(score.watch_interval)


def _ends_at(run: TrainedRun, step: int) -> bool:
    """Whether a run, as it was last started, is complete at the step of a checkpoint."""
    if step >= _last_step(run):
        return True
    return early_stopping.no_improvement(run.workdir.load_config(), run.workdir.metrics_file, step) is not None


def _last_step(run: TrainedRun) -> int:
    """The step at which the run will end, as it was last started."""
    data, schedule, record = run.config.data, run.workdir.load_config().schedule, run.training_data
    count = record.examples["train_split"] if record else catalog.num_examples(data, data.train_split, run.classes)
    return Schedule.of(schedule, example_order.steps_per_epoch(count, data.batch_size)).last_step


def check_pairing(first: Examples, second: Examples, *, native: bool = False, flag: str = "compare") -> None:
    """Raises DataError if it is plain before scoring that the images or the true masks of two runs differ.

    Args:
      first: the examples on which one run is scored.
      second: those of the other run.
      native: whether both are scored at native resolution too, where resized masks do not matter.
      flag: the flag that brought the runs together.
    """
    if first.origin != second.origin:
        raise DataError(
            f"--{flag}: the two runs must have one data set, for their images to be paired; "
            f"got {first.origin} and {second.origin}"
        )
    if first.names != second.names:
        raise DataError(f"--{flag}: the two runs must have the same images; those of {first.origin} differ by name")
    if first.classes.names != second.classes.names:
        one, other = (", ".join(each.classes.names) for each in (first, second))
        raise DataError(f"--{flag}: the two runs must have the same classes; got {one} and {other}")
    if len({large_splits.is_large(len(each), len(each.classes)) for each in (first, second)}) > 1:
        raise DataError(
            f"--{flag}: {len(first)} images are too many for a row each with {len(first.classes)} or "
            f"{len(second.classes)} classes, so they are not drawn in pairs; --eval_examples must be below that"
        )
    if native:
        return
    some = range(min(MASKS_COMPARED_FIRST, len(first)))
    masks = [each.read(some)[1] for each in (first, second)]
    sizes = ["{} x {}".format(*each.shape[1:3]) for each in masks]
    if sizes[0] != sizes[1]:
        raise DataError(f"--{flag}: the two runs were scored at {sizes[0]} and {sizes[1]} pixels, {DIFFERENT_TRUTH}")
    if not np.array_equal(masks[0], masks[1]):
        raise DataError(f"--{flag}: the masks of the two runs differ, as with another --resize, {DIFFERENT_TRUTH}")


def paired_resolutions(runs: Sequence[CheckpointScores], *, flag: str = "compare") -> list[int]:
    """The resolutions at which all runs were scored against the same true masks, by their place in the results.

    Raises:
      DataError: if there is none.
    """
    first, *others = runs
    paired = []
    for i, truth in enumerate(evaluation.truth for evaluation in first.evaluations):
        truths = [each.evaluations[i].truth for each in others]
        if truth is not None and all(each is not None and np.array_equal(each, truth) for each in truths):
            paired.append(i)
        elif len(first.evaluations) > 1:
            logger.info("--%s: at %s the runs' masks differ: not compared there", flag, first.results[i]["resolution"])
    if paired:
        return paired
    if len(first.evaluations) > 1:
        raise DataError(
            f"--{flag}: the runs were scored against different masks, also at native resolution; their masks must be "
            "read with the same values, colours and ignored values"
        )
    raise DataError(f"--{flag}: the masks of the runs differ, as with another --resize, {DIFFERENT_TRUTH}")


def _compare(scored: CheckpointScores, other: Scorer) -> CheckpointScores:
    """Scores the other run's checkpoint, and adds the comparison to the first one's results."""
    theirs = other.score(other.latest_or_best())
    for i in paired_resolutions([scored, theirs]):
        comparison = confidence_intervals.compare([scored.evaluations[i].counts], [theirs.evaluations[i].counts])
        weights = theirs.results[i]["weights"]
        scored.results[i]["comparison"] = {"other": theirs.path, "weights": weights, **comparison}
    return theirs


def draw_comparison(scorer: Scorer, other: Scorer) -> None:
    """Draws what two runs make of the same images, the other one first, as in before and after."""
    images, masks, mine, names = scorer.predictions(SHEET_EXAMPLES)
    _, their_masks, theirs, _ = other.predictions(SHEET_EXAMPLES)
    stretched = {each.run.config.data.resize for each in (scorer, other)} == {"stretch"}
    if not stretched and not np.array_equal(masks, their_masks):
        logger.info("no pictures of the comparison: the two runs see different parts of the images")
        return
    theirs = tf.image.resize(theirs[..., None], mine.shape[1:], method="nearest").numpy()[..., 0]
    first, second = (each.run.workdir.path.name for each in (other, scorer))
    titles = (first, second) if first != second else ("second", "first")
    sheet = pictures.comparison_sheet(
        images, masks, dict(zip(titles, (theirs, mine), strict=True)), names, scorer.run.classes
    )
    file = scorer.run.workdir.figures / "comparison.png"
    write_bytes(file, pictures.to_png(sheet))
    print(f"pictures:   {file}")


def _print_comparison(scored: CheckpointScores, theirs: CheckpointScores) -> None:
    for results in theirs.results:
        print(score_tables.table(results))
        print(f"\ncheckpoint: {theirs.path}\n")
    names = [f"{each.path} ({each.results[0]['weights']} weights)" for each in (scored, theirs)]
    print(f"first: {names[0]}, second: {names[1]}")
    for results in scored.results:
        if "comparison" in results:
            print(f"at {results['resolution']}: {score_tables.comparison_text(results['comparison'])}")


def write_results(scored: CheckpointScores) -> None:
    """Writes the results files of a checkpoint, and prints their tables."""
    for results, file in zip(scored.results, scored.files, strict=True):
        write_json(file, results)
        print(score_tables.table(results))
        print(f"\ncheckpoint: {scored.path}\nresults:    {file}\n")


def write_csv(path: str, rows: list[dict[str, Any]]) -> None:
    """Writes rows of scores as --csv says."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with explain_write_errors(path, flag=f"--csv={path}"):
        write_text(Path(path), text.getvalue())
    print(f"images:     {path}")
