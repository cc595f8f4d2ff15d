"""TensorBoard event files of a run, and the same numbers as CSV; both are cut back to the checkpoint on resume."""

import contextlib
import csv
import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar_summary
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import (
    api_pb2,
    metadata as hparams_metadata,
    summary as hparams_summary,
    summary_v2 as hparams_summary_v2,
)
from tensorboard.plugins.image import metadata as image_metadata

from petseg.classes import Classes
from petseg.data.picture_formats import open_picture
from petseg.errors import WorkDirectoryError
from petseg.files import make_folder, printable, sync, sync_tree, write_bytes
from petseg.reporting import tags
from petseg.runtime import autotuning

logger = logging.getLogger(__name__)
TRAIN, EVAL = "train", "eval"
EMA = "ema"  # evaluations of averaged weights
FINAL = "final"  # the run's row of the HParams page, which takes all scalars of this folder as metrics
HISTOGRAM_BUCKETS = 30
SESSION_TAGS = (hparams_metadata.SESSION_START_INFO_TAG, hparams_metadata.SESSION_END_INFO_TAG)
COLUMNS = ("step", "run", "tag", "value")


class Summaries:
    """Writes summaries of the runs `train`, `eval` and `ema`; TensorBoard draws equal tags in one chart.

    Args:
      first_step: the step at which this process starts; what an interrupted process logged of later steps, and all of
        step 0, is dropped because it will be logged again.
      evaluates_first: whether training starts with an evaluation at `first_step`, whose earlier log is dropped too.
    """

    def __init__(
        self,
        directory: Path,
        metrics_file: Path,
        first_step: int,
        classes: Classes,
        runs: Sequence[str] = (TRAIN, EVAL, FINAL),
        *,
        evaluates_first: bool = False,
    ):
        self._classes = classes
        last_kept = {run: first_step - (evaluates_first and run != TRAIN) for run in runs}
        self._metrics_file = metrics_file
        self._folders = [directory / run for run in runs]
        for run, folder in zip(runs, self._folders, strict=True):
            make_folder(folder)
            drop_later_events(folder, last_kept[run])
        try:
            self._writers = {run: tf.summary.create_file_writer(str(directory / run)) for run in runs}
        except tf.errors.OpError as error:
            reason = error.message.splitlines()[0].rpartition("}} ")[2]  # without the name of the graph's node
            raise WorkDirectoryError(f"{directory}: event files cannot be written: {reason}") from error
        write_bytes(metrics_file, _kept_rows(metrics_file, first_step, last_kept))
        self._csv_file = open(metrics_file, "a", newline="")  # noqa: SIM115 (closed by close)
        self._csv = csv.writer(self._csv_file)
        self._failed = False

    def evaluated(self, step: int, scores: Mapping[str, float]) -> None:
        """Logs the metrics of the HParams page; they complete an evaluation, see `was_evaluated`."""
        self.flush()
        self.scalars(FINAL, step, {tag: scores[name] for tag, name in tags.final(self._classes).items()})
        self.flush()

    def scalars(self, run: str, step: int, values: Mapping[str, float]) -> None:
        with self.write_errors_logged(), self._writers[run].as_default(step=step):
            for tag, value in values.items():
                tf.summary.scalar(tag, value, description=tags.describe(tag))
                self._csv.writerow((step, run, tag, repr(float(value))))

    def text(self, step: int, tag: str, markdown: str) -> None:
        with self.write_errors_logged(), self._writers[TRAIN].as_default(step=step):
            tf.summary.text(tag, printable(markdown, keep="\n"))  # a path in it may be not UTF-8

    def arrange(self) -> None:
        """Logs the layout of TensorBoard's custom-scalars page."""
        self._raw(TRAIN, custom_scalar_summary.pb(tags.layout(self._classes)))

    def image(self, run: str, step: int, tag: str, picture: bytes) -> None:
        """Logs an encoded PNG or JPEG image."""
        width, height = open_picture(io.BytesIO(picture)).size
        value = tf.constant([str(width).encode(), str(height).encode(), picture])
        metadata = image_metadata.create_summary_metadata(display_name=None, description=tags.IMAGES[tag])
        with self.write_errors_logged(), self._writers[run].as_default(step=step):
            tf.summary.write(tag, value, metadata=metadata)

    def histogram(self, run: str, step: int, tag: str, values: np.ndarray, description: str = "") -> None:
        """Logs a histogram of finite numbers, counted by NumPy: `tf.summary.histogram` takes seconds for millions."""
        values = np.asarray(values, np.float64)
        low, high = values.min(), values.max()
        margin = HISTOGRAM_BUCKETS * np.spacing(max(abs(low), abs(high)))  # else neighbouring edges would be equal
        limits = (low - margin, high + margin) if high - low < 2 * margin else (low, high)
        counts, edges = np.histogram(values, HISTOGRAM_BUCKETS, limits)
        buckets = np.stack([edges[:-1], edges[1:], counts], axis=1)
        metadata = histogram_metadata.create_summary_metadata(display_name=None, description=description)
        with self.write_errors_logged(), self._writers[run].as_default(step=step):
            tf.summary.write(tag, tf.constant(buckets, tf.float64), metadata=metadata)

    def graph(self, graph: tf.Graph) -> None:
        with self.write_errors_logged(), self._writers[TRAIN].as_default(step=0):
            tf.summary.graph(graph)

    def begin_session(self, name: str, hyperparameters: Mapping[str, bool | int | float | str]) -> None:
        """Logs the run's row of the HParams page.

        Runs of the same name share a row with their mean scores. No columns are declared, so that TensorBoard shows
        those in which runs differ.
        """
        values = {
            flag: printable(value) if isinstance(value, str) else value for flag, value in hyperparameters.items()
        }
        self._raw(FINAL, hparams_summary_v2.hparams_pb(values, trial_id=printable(name)))

    def end_session(self) -> None:
        """Marks the run as complete on the HParams page."""
        self._raw(FINAL, hparams_summary.session_end_pb(api_pb2.STATUS_SUCCESS))

    def _raw(self, run: str, summary: Any) -> None:
        with self.write_errors_logged(), self._writers[run].as_default(step=0):
            tf.summary.experimental.write_raw_pb(summary.SerializeToString())

    def flush(self) -> None:
        """Writes buffered summaries to their files."""
        with self.write_errors_logged():
            for writer in self._writers.values():
                writer.flush()
        with self.write_errors_logged():  # the CSV file last because `was_evaluated` reads it
            self._csv_file.flush()

    def sync(self) -> None:
        """Forces what `flush` has written onto the disk; any thread may call it.

        A checkpoint must not outlive the log before its step, which a run that resumes there does not repeat.
        """
        with self.write_errors_logged():
            sync(self._metrics_file)
            for folder in self._folders:
                sync_tree(folder)

    def close(self) -> None:
        with self.write_errors_logged():
            self._csv_file.close()
            for writer in self._writers.values():
                writer.close()

    @contextlib.contextmanager
    def write_errors_logged(self) -> Iterator[None]:
        """Turns write errors into one warning, so that a full disk does not end the training."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            if not self._failed:
                logger.warning("summaries cannot be written, training continues: %s", error)
            self._failed = True


def drop_later_events(directory: Path, step: int) -> None:
    """Cuts the event files of a folder back to a step, and deletes them for step 0.

    TensorBoard would draw zigzag lines through steps that were logged twice. Rows of the HParams page are dropped too
    because a resumed run may have other flags and is no longer complete. It reads files in the order of their names,
    which hold a time: files begun while the clock was ahead are renamed. Raises WorkDirectoryError if a file cannot be
    rewritten; it is left unchanged.
    """
    latest = int(time.time())
    for file in sorted(directory.glob("events.out.tfevents.*"), reverse=True):
        if not step:
            file.unlink()
            continue
        temporary = directory / "kept.tmp"
        try:
            with tf.io.TFRecordWriter(str(temporary)) as writer:
                for record in _records(file):
                    event = event_pb2.Event.FromString(record)
                    of_session = any(value.tag in SESSION_TAGS for value in event.summary.value)
                    if event.step <= step and not of_session:
                        writer.write(record)
        except tf.errors.OpError as error:
            temporary.unlink(missing_ok=True)
            raise WorkDirectoryError(f"{file}: cannot be rewritten: {error.message.splitlines()[0]}") from error
        sync(temporary)
        os.replace(temporary, file)
        begun = file.name.split(".")[3]
        latest = min(int(begun), latest - 1)
        file.rename(file.with_name(file.name.replace(begun, f"{latest:010}", 1)))


def _records(file: Path) -> Iterator[bytes]:
    """Records of an event file, up to the first truncated one."""
    records = iter(tf.data.TFRecordDataset(str(file)).with_options(autotuning.off()))
    with contextlib.suppress(tf.errors.DataLossError):
        for record in records:
            yield record.numpy()


def was_evaluated(metrics_file: Path, step: int) -> bool:
    """Whether the CSV file has the complete log of an evaluation at a step."""
    rows = read_csv(metrics_file, lambda run, tag: (run, tag) == (FINAL, tags.LOSS_OF_RUN))
    return any(row[0] == step for row in rows)


def _kept_rows(metrics_file: Path, first_step: int, last_kept: Mapping[str, int]) -> Iterator[bytes]:
    """Lines of a CSV file without the rows that will be logged again, read lazily."""
    yield f"{','.join(COLUMNS)}\r\n".encode()
    for step, run, tag, value in read_csv(metrics_file) if first_step else ():
        if step <= last_kept.get(run, first_step):
            yield f"{step},{run},{tag},{value!r}\r\n".encode()


def read_csv(
    metrics_file: Path, wanted: Callable[[str, str], bool] = lambda run, tag: True
) -> Iterator[tuple[int, str, str, float]]:
    """Rows (step, run, tag, value) of a CSV file that may be missing; skips truncated and malformed rows.

    Args:
      wanted: (run, tag) -> whether to yield its rows.
    """
    if not metrics_file.exists():
        return
    with open(metrics_file, "rb") as file:
        for line in file:
            parts = line.decode(errors="replace").rstrip("\r\n").split(",")
            if not line.endswith(b"\n") or len(parts) != len(COLUMNS) or not wanted(parts[1], parts[2]):
                continue
            try:
                row = int(parts[0]), parts[1], parts[2], float(parts[3])
            except ValueError:  # the header too
                continue
            yield row


def scalars_of(results: Mapping[str, object]) -> dict[str, float]:
    """Flattens scores to scalars by tag: {"iou": {"pet": .8}} -> {"iou/pet": .8}; drops everything but floats."""
    scalars = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            scalars.update({f"{name}/{key}": part for key, part in value.items() if isinstance(part, float)})
        elif isinstance(value, float):
            scalars[name] = value
    return scalars
