"""Opens the report of a run; logs data card, model and first training batch once, at the start."""

import numpy as np
import tensorflow as tf

from petseg.data import catalog, input_pipeline
from petseg.data.examples import BatchPosition
from petseg.reporting import model_diagram, pictures
from petseg.reporting.report import SHEET_EXAMPLES, NullReport, Report
from petseg.runs import model_selection, run_groups
from petseg.runs.schedule import Schedule
from petseg.runs.setup import Run


def open_report(run: Run, step: int, schedule: Schedule, *, evaluates_first: bool) -> Report:
    """The report of a run, once its config.json is written; in a cluster, only the chief reports."""
    if not run.placement.is_chief:
        return NullReport()
    workdir, devices = run.workdir, [device.name for device in tf.config.list_logical_devices()]
    classes = run.train_examples.classes
    workdir.save_config(
        run.config, classes=classes, class_weights=run.class_weights, rare_classes=run.rare_classes, devices=devices
    )
    if step == 0 or not workdir.data_file.exists():  # an earlier version recorded no data
        run.data.write(workdir.data_file)
    return Report(
        run.config,
        classes,
        selected=model_selection.selected_weights(run.config),
        directory=workdir.path,
        group=run_groups.group_folder(run.config),
        metrics_file=workdir.metrics_file,
        figures=workdir.figures,
        contents=workdir.contents(),
        description=workdir.describe(),
        first_step=step,
        last_step=schedule.last_step,
        steps_per_epoch=schedule.steps_per_epoch,
        evaluates_first=evaluates_first,
        evaluate_every=schedule.eval_every,
    )


def log_introduction(run: Run, report: Report, *, evaluates_first: bool) -> None:
    """Logs what is shown once, at step 0; predictions too, unless an evaluation is about to show them."""
    if not run.placement.is_chief:
        return
    classes = run.train_examples.classes
    report.begin(
        card=catalog.open_data(run.config.data, classes).card(),
        model_diagram=model_diagram.draw(run.model),
        graph=run.evaluator.graph(),
        training_batch=pictures.training_batch(*_first_batch(run), classes),
    )
    if not evaluates_first:
        report.predictions(0, run.eval_examples, run.evaluator)


def _first_batch(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """The first examples as the model sees them: augmented images for display, masks, pixel weights and names."""
    step, size = tf.constant(0, tf.int64), run.config.data.batch_size
    positions = tf.range(min(SHEET_EXAMPLES, size), dtype=tf.int64)
    batch = input_pipeline.part_of_batch(
        run.train_examples,
        BatchPosition(step, positions, size, run.config.runtime.seed, run.config.runtime.example_order),
    )
    images, masks, weights, _ = run.trainer.prepare_batch(batch, step)
    names = run.train_examples.names_of(batch["example_id"].numpy().tolist())
    return run.config.data.image_spec.shown(images.numpy()), masks.numpy()[..., 0], weights.numpy(), names
