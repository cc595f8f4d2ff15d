"""Reports a training run in TensorBoard, `metrics.csv`, `figures/` and on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from petseg import config as config_lib, custom_code
from petseg.classes import Classes
from petseg.config import Config, command_line
from petseg.config.options import SCORING
from petseg.data.examples import Examples
from petseg.evaluation import metrics, score_tables
from petseg.evaluation.evaluation import Evaluation
from petseg.evaluation.evaluator import Evaluator
from petseg.files import write_bytes
from petseg.reporting import pictures, summaries, tags
from petseg.reporting.curves import Curves
from petseg.reporting.progress import Progress
from petseg.reporting.summaries import EMA, EVAL, FINAL, TRAIN, Summaries
from petseg.training.measurements import Measurements

SHEET_EXAMPLES, EXTREME_EXAMPLES = 6, 4
PICTURES_AT_FIRST_BITS = 4  # the first 2**4 - 1 evaluations all log their images


class Report:
    """Reports a training run; see `NullReport` for processes that do not.

    Args:
      selected: the evaluations that represent the run: `eval`, or `ema` for averaged weights.
      evaluates_first: whether training starts with an evaluation at `first_step`.
      evaluate_every: evaluation interval in steps, by which images of long runs are thinned out; 0: log all.
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
        self._own_scores = metrics.own(config.extension.scores)
        self._action = custom_code.function_of("every_summary", config.extension.every_summary)
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

    def sync(self) -> None:
        """Forces what `flush` has written onto the disk; any thread may call it."""
        self._summaries.sync()

    def begin(self, *, card: str, model_diagram: Figure | None, graph: tf.Graph, training_batch: Figure) -> None:
        """Logs what is shown once, at the start of a run.

        Args:
          card: description of the data set, as markdown.
          model_diagram: figure of the model; None for a model that cannot be drawn.
          graph: graph of the model's forward pass.
          training_batch: figure of augmented training examples.
        """
        self._summaries.arrange()
        self._summaries.text(0, "config", config_lib.markdown_of(self._config))
        self._summaries.text(0, "run", self._description)
        self._summaries.text(0, "data", card)
        self._summaries.graph(graph)
        if model_diagram is not None:
            self._picture(TRAIN, 0, "model", model_diagram, figure=True)
        self._picture(TRAIN, 0, "training_batch", training_batch)

    def summary(self, step: int, measured: Measurements, telemetry: dict[str, float]) -> None:
        """Logs the measurements of the steps since the last summary, and their time and memory by tag."""
        scores = metrics.from_confusion_matrix(measured.confusion_matrix, self._classes, self._own_scores)
        scalars = {
            **{tags.measurement_tag(name): value for name, value in measured.scalars.items()},
            **summaries.scalars_of(scores),
            **telemetry,
        }
        self._scalars(TRAIN, step, scalars)
        if self._action:
            self._action(step, scalars, self._directory)
        self._summaries.flush()  # so that TensorBoard shows it at once
        speed = telemetry.get("speed/images_per_second", float("nan"))
        self._progress.show(loss=measured.scalars["loss"], mean_iou=scores["mean_iou"], images_per_second=speed)

    def histograms(self, step: int, weights: dict[str, np.ndarray], gradients: dict[str, np.ndarray]) -> None:
        """Logs histograms of the weights and of the gradients of the last step, by layer."""
        kinds = {"weights": (weights, tags.WEIGHTS), "gradients": (gradients, tags.GRADIENTS)}
        for kind, (values, description) in kinds.items():
            for name, value in values.items():
                if np.isfinite(value).all():  # float16 gradients may overflow
                    self._summaries.histogram(TRAIN, step, f"{kind}/{name}", value, description)

    def evaluation(
        self,
        step: int,
        evaluations: Mapping[str, Evaluation],
        results: Mapping[str, dict[str, Any]],
        examples: Examples,
        scorer: Evaluator,
    ) -> None:
        """Logs scores and images of an evaluation, and updates the figures.

        Args:
          evaluations: counts of the trained weights, and of averaged weights if there are any, by run.
          results: contents of the results files of the same runs.
          scorer: evaluator whose model has the weights that are shown.
        """
        for run, scores in results.items():
            self._scalars(run, step, summaries.scalars_of(scores))
        evaluation = evaluations[self._shown]
        self._scored_sheets(self._shown, step, evaluation, examples, scorer)
        matrix = pictures.confusion_matrix(evaluation.pixels, self._classes.names)
        self._picture(self._shown, step, "confusion_matrix", matrix, figure=True)
        self._summaries.flush()
        curves = pictures.training_curves(self._curves.rows(), self._steps_per_epoch, self._classes)
        self._figure("curves", pictures.to_png(curves))
        self._summaries.evaluated(step, summaries.scalars_of(results[self._shown]))

    def predictions(self, step: int, examples: Examples, scorer: Evaluator) -> None:
        """Logs predictions of the fixed examples, without scores."""
        self._sheets(self._shown, step, {"predictions": _fixed_examples(examples)}, examples.names, examples, scorer)

    def _scored_sheets(
        self, run: str, step: int, evaluation: Evaluation, examples: Examples, scorer: Evaluator
    ) -> None:
        """Logs sheets of the fixed, the worst and the best examples, and a histogram of scores.

        Of a large split, the histogram is that of its sample, and fixed examples outside the sample show no score.
        """
        kept = metrics.mean_iou(evaluation.confusion_matrices)
        finite = np.sort(kept[np.isfinite(kept)])
        if len(finite):
            self._summaries.histogram(run, step, tags.IMAGE_IOU, finite, tags.SCORES)
        ranked, scores = evaluation.ranked()
        sheets = {"predictions": _fixed_examples(examples)}
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
                    self._config.data.image_spec.shown(images),
                    masks[..., 0],
                    classes[part],
                    confidences[part],
                    names,
                    self._classes,
                )
                self._picture(run, step, tag, sheet, figure=tag == "predictions")

    def finish(self, results: dict[str, Any]) -> None:
        """Prints final scores, the contents of the work directory and the next commands."""
        self._progress.close()
        self._summaries.end_session()
        if self._config.runtime.quiet:
            return
        path = self._directory
        print(score_tables.table(results))
        if self._shown == EMA:
            print("\naveraged weights")
            print(score_tables.table(results[EMA]))
        print(f"\nwork directory: {path}")
        for name, content in self._contents.items():
            print(f"  {name:23}{content}")
        flags = " --ema" if self._shown == EMA else ""
        flags += " --allow_code" if config_lib.code_references(self._config, [SCORING]) else ""
        print(f"\nscore it:       {command_line.invocation('eval.py')} --workdir={path} --checkpoint=best{flags}")
        print(f"watch it:       tensorboard --logdir={path}")

    def close(self) -> None:
        self._progress.close()
        self._summaries.close()

    def _scalars(self, run: str, step: int, scalars: Mapping[str, float]) -> None:
        self._summaries.scalars(run, step, scalars)
        for tag, value in scalars.items():
            self._curves.add(step, run, tag, value)

    def _logs_pictures(self, step: int) -> bool:
        """Whether the images of an evaluation go to the event files; `figures/` always has the latest.

        The first 15 evaluations and the last one do; of the others, a share that halves each time their number doubles
        (63 of 1,000), which bounds the size of event files.
        """
        if not self._evaluate_every or step >= self._last_step:
            return True
        number = step // self._evaluate_every
        return number % 2 ** max(0, number.bit_length() - PICTURES_AT_FIRST_BITS) == 0

    def _picture(self, run: str, step: int, tag: str, drawing: Figure, *, figure: bool = False) -> None:
        """Logs a drawing as image, as JPEG if it contains photographs; with `figure` also writes it to `figures/`."""
        picture = pictures.to_array(drawing)
        png = pictures.encode_png(picture) if figure else b""
        if self._logs_pictures(step):
            self._summaries.image(run, step, tag, pictures.encode_jpeg(picture) if tag in tags.PHOTOGRAPHS else png)
        if figure:
            self._figure(tag, png)

    def _figure(self, name: str, png: bytes) -> None:
        with self._summaries.write_errors_logged():
            write_bytes(self._figures / f"{name}.png", png)


class NullReport(Report):
    """A report without any effect, for processes of a cluster other than the chief."""

    def __init__(self) -> None:
        """Opens no files."""

    def _nothing(self, *arguments: Any, **options: Any) -> None:
        """Takes the place of each method of `Report`."""

    start = advance = begin = summary = histograms = evaluation = predictions = _nothing
    flush = sync = finish = close = _nothing


def _fixed_examples(examples: Examples) -> np.ndarray:
    return np.arange(min(SHEET_EXAMPLES, len(examples)))
