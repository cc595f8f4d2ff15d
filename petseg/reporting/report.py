"""What a run shows of itself: which numbers and pictures, when; in TensorBoard, in `figures/`, on the terminal."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from petseg import config as config_lib
from petseg.classes import Classes
from petseg.config import Config, command_line
from petseg.data.examples import Examples
from petseg.evaluation import metrics, score_tables
from petseg.evaluation.evaluator import Evaluation, Evaluator
from petseg.files import write_bytes
from petseg.reporting import pictures, summaries, tags
from petseg.reporting.curves import Curves
from petseg.reporting.progress import Progress
from petseg.reporting.summaries import EMA, EVAL, FINAL, TRAIN, Summaries
from petseg.training.measurements import Measurements

SHEET_EXAMPLES, EXTREME_EXAMPLES = 6, 4
PICTURES_AT_FIRST_BITS = 4  # the pictures of fewer than 2**4 evaluations are all logged


@dataclasses.dataclass(frozen=True)
class Introduction:
    """What is said once, at the start of a run.

    Attributes:
      card: what is known of the data set, as markdown.
      model_diagram: drawing of the model; None where it cannot be drawn.
      graph: graph of the model's forward pass.
      training_batch: drawing of examples as the model sees them.
    """

    card: str
    model_diagram: Figure | None
    graph: tf.Graph
    training_batch: Figure


class NullReport:
    """A report that tells nothing, for processes of a cluster that are not its chief."""

    def start(self) -> None:
        """Counts the time left from here; what came before was preparation."""

    def advance(self, step: int) -> None:
        """Moves to a step."""

    def begin(self, introduce: Callable[[], Introduction]) -> None:
        """Logs what is said once, at the start of a run; calls `introduce` to hear it."""

    def summary(self, step: int, measured: Measurements, telemetry: dict[str, float]) -> None:
        """Logs what the steps since the last summary did, and what they took."""

    def histograms(self, step: int, weights: dict[str, np.ndarray], gradients: dict[str, np.ndarray]) -> None:
        """Logs how weights, and the gradients of the last step, are distributed."""

    def evaluation(
        self,
        step: int,
        evaluations: Mapping[str, Evaluation],
        results: Mapping[str, dict[str, Any]],
        examples: Examples,
        scorer: Evaluator,
    ) -> None:
        """Logs scores and pictures of an evaluation, and brings the figures up to date."""

    def predictions(self, step: int, examples: Examples, scorer: Evaluator) -> None:
        """Shows what the model makes of the same examples as ever, without scores."""

    def flush(self) -> None:
        """Makes everything logged visible to readers."""

    def finish(self, results: dict[str, Any]) -> None:
        """Says how the run ended, where everything lies, and what to type next."""

    def close(self) -> None:
        """Ends the report, wherever it is."""


class Report(NullReport):
    """All that a run tells its user.

    Args:
      config: config of the run.
      classes: the classes.
      selected: the evaluations whose scores and pictures represent the run: `eval`, or `ema` of averaged weights.
      directory: work directory, with a folder of event files for each of `train`, `eval`, `ema` and `final`.
      group: folder of the runs that are one experiment with this one, with other seeds; None for none.
      metrics_file: CSV file of all numbers.
      figures: folder of pictures.
      contents: what lies where in the work directory, by name.
      description: command, versions and devices of the run, as markdown.
      first_step: step at which this process starts.
      last_step: step at which the run ends.
      steps_per_epoch: number of steps in an epoch.
      evaluates_first: whether an evaluation at `first_step` comes first.
      evaluate_every: interval of evaluations in steps, so that a long run logs the pictures of some; 0: of all.
    """

    def __init__(
        self,
        config: Config,
        classes: Classes,
        *,
        selected: str,
        directory: Path,
        group: Path | None = None,
        metrics_file: Path,
        figures: Path,
        contents: Mapping[str, str],
        description: str,
        first_step: int,
        last_step: int,
        steps_per_epoch: int,
        evaluates_first: bool = False,
        evaluate_every: int = 0,
    ):
        self._classes = classes
        self._config, self._shown, self._steps_per_epoch = config, selected, steps_per_epoch
        self._directory, self._figures = directory, figures
        self._last_step, self._evaluate_every = last_step, evaluate_every
        self._contents, self._description = contents, description
        runs = dict.fromkeys((TRAIN, EVAL, self._shown, FINAL))
        self._summaries = Summaries(
            directory, metrics_file, first_step, classes, tuple(runs), evaluates_first=evaluates_first
        )
        self._curves = Curves(classes)
        self._curves.read(metrics_file)
        shown_as, hyperparameters = group or directory, config_lib.hyperparameters(config)
        if group:
            del hyperparameters["seed"]
        self._summaries.begin_session(f"{shown_as.name} ({shown_as.parent})", hyperparameters)
        self._progress = Progress(
            first_step,
            last_step,
            steps_per_epoch=steps_per_epoch,
            log_every=config.schedule.log_every,
            hidden=config.runtime.quiet,
        )

    def start(self) -> None:
        self._progress.start()

    def advance(self, step: int) -> None:
        self._progress.advance(step)

    def flush(self) -> None:
        self._summaries.flush()

    def begin(self, introduce: Callable[[], Introduction]) -> None:
        introduction = introduce()
        self._summaries.arrange()
        self._summaries.text(0, "config", config_lib.markdown_of(self._config))
        self._summaries.text(0, "run", self._description)
        self._summaries.text(0, "data", introduction.card)
        self._summaries.graph(introduction.graph)
        if introduction.model_diagram is not None:
            self._picture(TRAIN, 0, "model", introduction.model_diagram, figure=True)
        self._picture(TRAIN, 0, "training_batch", introduction.training_batch)

    def summary(self, step: int, measured: Measurements, telemetry: dict[str, float]) -> None:
        """Logs what the steps since the last summary did, and what they took."""
        scores = metrics.from_confusion_matrix(measured.confusion_matrix, self._classes)
        scalars = {
            **{tags.measurement_tag(name): value for name, value in measured.scalars.items()},
            **summaries.scalars_of(scores),
            **telemetry,
        }
        self._scalars(TRAIN, step, scalars)
        self._summaries.flush()  # who watches sees it now, not when some buffer is full
        speed = telemetry.get("speed/images_per_second", float("nan"))
        self._progress.show(loss=measured.scalars["loss"], mean_iou=scores["mean_iou"], images_per_second=speed)

    def histograms(self, step: int, weights: dict[str, np.ndarray], gradients: dict[str, np.ndarray]) -> None:
        """Logs how weights, and the gradients of the last step, are distributed."""
        kinds = {"weights": (weights, tags.WEIGHTS), "gradients": (gradients, tags.GRADIENTS)}
        for kind, (values, description) in kinds.items():
            for name, value in values.items():
                if np.isfinite(value).all():  # float16 may overflow; the scalars tell of it
                    self._summaries.histogram(TRAIN, step, f"{kind}/{name}", value, description)

    def evaluation(
        self,
        step: int,
        evaluations: Mapping[str, Evaluation],
        results: Mapping[str, dict[str, Any]],
        examples: Examples,
        scorer: Evaluator,
    ) -> None:
        """Logs scores and pictures of an evaluation, and brings the figures up to date.

        Args:
          step: step of the evaluation.
          evaluations: what was counted with the weights and with their averages, by run.
          results: what the results files of the same runs hold.
          examples: the examples of the split.
          scorer: evaluator whose model has the weights that are shown.
        """
        for run, scores in results.items():
            self._scalars(run, step, summaries.scalars_of(scores))
        evaluation = evaluations[self._shown]
        self._scored_sheets(self._shown, step, evaluation, examples, scorer)
        matrix = pictures.confusion_matrix(evaluation.confusion_matrix, self._classes.names)
        self._picture(self._shown, step, "confusion_matrix", matrix, figure=True)
        self._summaries.flush()
        curves = pictures.training_curves(self._curves.rows(), self._steps_per_epoch, self._classes)
        self._figure("curves", pictures.to_png(curves))
        self._summaries.evaluated(step, summaries.scalars_of(results[self._shown]))

    def predictions(self, step: int, examples: Examples, scorer: Evaluator) -> None:
        """Shows what the model makes of the same examples as ever, without scores."""
        self._sheets(self._shown, step, {"predictions": _shown_examples(examples)}, examples.names, examples, scorer)

    def _scored_sheets(
        self, run: str, step: int, evaluation: Evaluation, examples: Examples, scorer: Evaluator
    ) -> None:
        """The same examples as ever, the worst and the best, with their scores; NaN for one without a valid pixel.

        Of a large split, the histogram is that of its sample, and an example that no count was kept of has no score.
        """
        kept = metrics.mean_iou(evaluation.confusion_matrices)
        finite = np.sort(kept[np.isfinite(kept)])
        if len(finite):
            self._summaries.histogram(run, step, tags.IMAGE_IOU, finite, tags.SCORES)
        ranked, scores = evaluation.ranked()
        sheets = {"predictions": _shown_examples(examples)}
        if self._logs_pictures(step):
            sheets |= {"worst": ranked[:EXTREME_EXAMPLES], "best": ranked[::-1][:EXTREME_EXAMPLES]}
        known = dict(zip(evaluation.ids, kept.tolist(), strict=True))
        known |= dict(zip(ranked.tolist(), scores.tolist(), strict=True))
        shown = np.unique(np.concatenate(list(sheets.values()))).tolist()
        captions = {i: examples.names[i] + (f"  IoU {known[i]:.3f}" if i in known else "") for i in shown}
        self._sheets(run, step, sheets, captions, examples, scorer)

    def _sheets(
        self,
        run: str,
        step: int,
        sheets: Mapping[str, np.ndarray],
        captions: Sequence[str] | Mapping[int, str],
        examples: Examples,
        scorer: Evaluator,
    ) -> None:
        classes, confidences = scorer.predict(examples.read(np.concatenate(list(sheets.values())))[0])
        first = 0
        for tag, ids in sheets.items():
            part, first = slice(first, first + len(ids)), first + len(ids)
            if len(ids):
                images, masks = examples.read(ids)
                names = [captions[i] for i in ids]
                sheet = pictures.prediction_sheet(
                    images, masks[..., 0], classes[part], confidences[part], names, self._classes
                )
                self._picture(run, step, tag, sheet, figure=tag == "predictions")

    def finish(self, results: dict[str, Any]) -> None:
        """Says how the run ended, where everything lies, and what to type next."""
        self._progress.close()
        self._summaries.end_session()
        if self._config.runtime.quiet:
            return
        path = self._directory
        print(score_tables.table(results))
        if self._shown == EMA:
            print("\nthe averaged weights")
            print(score_tables.table(results[EMA]))
        print(f"\nwork directory: {path}")
        for name, what in self._contents.items():
            print(f"  {name:23}{what}")
        averaged = " --ema" if self._shown == EMA else ""
        print(f"\nscore it:       {command_line.invocation('eval.py')} --workdir={path} --checkpoint=best{averaged}")
        print(f"watch it:       tensorboard --logdir={path}")

    def close(self) -> None:
        self._progress.close()
        self._summaries.close()

    def _scalars(self, run: str, step: int, scalars: Mapping[str, float]) -> None:
        self._summaries.scalars(run, step, scalars)
        for tag, value in scalars.items():
            self._curves.add(step, run, tag, value)

    def _logs_pictures(self, step: int) -> bool:
        """Whether the pictures of an evaluation go to the event files.

        Those of the first 15 evaluations and of the last one do, and of all others a share that halves each time their
        number doubles: 63 of 1,000, so that the size of event files is bounded. `figures/` has the latest all the same.
        """
        if not self._evaluate_every or step >= self._last_step:
            return True
        number = step // self._evaluate_every
        return number % 2 ** max(0, number.bit_length() - PICTURES_AT_FIRST_BITS) == 0

    def _picture(self, run: str, step: int, tag: str, drawing: Figure, *, figure: bool = False) -> None:
        """Logs a drawing, as JPEG where it holds photographs; one that is a figure too is also written to a file."""
        picture = pictures.to_array(drawing)
        png = pictures.encode_png(picture) if figure else b""
        if self._logs_pictures(step):
            self._summaries.image(run, step, tag, pictures.encode_jpeg(picture) if tag in tags.PHOTOGRAPHS else png)
        if figure:
            self._figure(tag, png)

    def _figure(self, name: str, png: bytes) -> None:
        with self._summaries.surviving():
            write_bytes(self._figures / f"{name}.png", png)


def _shown_examples(examples: Examples) -> np.ndarray:
    return np.arange(min(SHEET_EXAMPLES, len(examples)))
