"""What a run logs: TensorBoard event files, and the same numbers as CSV."""

import contextlib
import csv
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar_summary

from petseg import tags

logger = logging.getLogger(__name__)
TRAIN, EVAL = "train", "eval"
COLUMNS = ("step", "run", "tag", "value")


class Summaries:
    """Writes scalars and images of the runs `train` and `eval`; the same tag in both makes one chart.

    Args:
      directory: the work directory; event files go to `train/` and `eval/`.
      metrics_file: the CSV file.
      first_step: the step at which this process starts; what a process that was stopped has logged of later steps, and
        all of step 0, is dropped, for it will be logged again.
    """

    def __init__(self, directory: Path, metrics_file: Path, first_step: int):
        for run in (TRAIN, EVAL):
            drop_later_events(directory / run, first_step)
        self._writers = {run: tf.summary.create_file_writer(str(directory / run)) for run in (TRAIN, EVAL)}
        kept = [row for row in read_csv(metrics_file) if row[0] <= first_step] if first_step else []
        temporary = metrics_file.with_name(metrics_file.name + ".tmp")
        with open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *kept])
        os.replace(temporary, metrics_file)
        self._csv_file = open(metrics_file, "a", newline="")  # noqa: SIM115 (closed by close)
        self._csv = csv.writer(self._csv_file)
        self._failed = False

    def scalars(self, run: str, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers by tag."""
        with self._surviving(), self._writers[run].as_default(step=step):
            for tag, value in values.items():
                tf.summary.scalar(tag, value, description=tags.SCALARS[tag])
                self._csv.writerow((step, run, tag, repr(float(value))))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Logs a text, for the whole run."""
        with self._surviving(), self._writers[TRAIN].as_default(step=step):
            tf.summary.text(tag, markdown)

    def arrange(self) -> None:
        """Groups the scalars on TensorBoard's custom-scalars page."""
        with self._surviving(), self._writers[TRAIN].as_default(step=0):
            tf.summary.experimental.write_raw_pb(custom_scalar_summary.pb(tags.layout()).SerializeToString())

    def image(self, run: str, step: int, tag: str, picture: np.ndarray) -> None:
        """Logs a picture, uint8 [H, W, 3]."""
        with self._surviving(), self._writers[run].as_default(step=step):
            tf.summary.image(tag, picture[None])

    def flush(self) -> None:
        """Makes everything logged visible to readers."""
        with self._surviving():
            self._csv_file.flush()
            for writer in self._writers.values():
                writer.flush()

    def close(self) -> None:
        with self._surviving():
            self._csv_file.close()
            for writer in self._writers.values():
                writer.close()

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """A curve that cannot be drawn is no reason to lose the training; says so once."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            if not self._failed:
                logger.warning("summaries cannot be written, training goes on: %s", error)
            self._failed = True


def drop_later_events(directory: Path, step: int) -> None:
    """Leaves in the event files of a folder only what was logged up to a step; nothing at all of a run at step 0.

    TensorBoard would draw a line back and forth through steps that were logged twice.
    """
    for file in directory.glob("events.out.tfevents.*"):
        if not step:
            file.unlink()
            continue
        temporary = directory / "kept.tmp"
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for record in _records(file):
                if event_pb2.Event.FromString(record).step <= step:
                    writer.write(record)
        os.replace(temporary, file)


def _records(file: Path) -> Iterator[bytes]:
    """The records of an event file, up to where it was cut off."""
    records = iter(tf.data.TFRecordDataset(str(file)))
    with contextlib.suppress(tf.errors.DataLossError):
        for record in records:
            yield record.numpy()


def read_csv(metrics_file: Path) -> Iterator[tuple[int, str, str, float]]:
    """The rows (step, run, tag, value) of a CSV file; none without a file. A half-written last row is left out."""
    if not metrics_file.exists():
        return
    with open(metrics_file, newline="") as file:
        for row in csv.reader(file):
            if len(row) == len(COLUMNS) and row[0] != COLUMNS[0]:
                yield int(row[0]), row[1], row[2], float(row[3])


def scalars_of(results: Mapping[str, object]) -> dict[str, float]:
    """Scores as scalars: {"iou": {"pet": .8}} -> {"iou/pet": .8}."""
    scalars = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            scalars.update({f"{name}/{key}": float(part) for key, part in value.items()})
        elif isinstance(value, float):
            scalars[name] = value
    return scalars
