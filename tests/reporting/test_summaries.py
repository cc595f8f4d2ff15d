import contextlib
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from conftest import events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from petseg.classes import PETS
from petseg.errors import WorkDirectoryError
from petseg.reporting import summaries
from petseg.reporting.summaries import Summaries

PNG = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()


def log_steps(folder, steps, first_step):
    log = Summaries(folder, folder / "metrics.csv", first_step=first_step, classes=PETS)
    for step in steps:
        log.scalars(summaries.TRAIN, step, {"loss": 100.0 - step})
        log.image(summaries.EVAL, step, "predictions", PNG)
    log.close()


def steps_of(folder, tag):
    return sorted(events(folder)[tag])  # event files of the same second and process have no order


def test_on_resume_summaries_after_the_checkpoint_are_dropped(tmp_path):
    log_steps(tmp_path, range(6), first_step=0)
    for file in (tmp_path / "train").iterdir():  # cut off, as by a kill
        with open(file, "ab") as stream:
            stream.write(b"half a record")
    log_steps(tmp_path, range(4, 9), first_step=3)
    log_steps(tmp_path, range(8, 10), first_step=7)
    assert steps_of(tmp_path / "train", "loss") == list(range(10))
    assert steps_of(tmp_path / "eval", "predictions") == list(range(10))
    assert [row[0] for row in summaries.read_csv(tmp_path / "metrics.csv")] == list(range(10))


def test_a_restart_from_step_0_drops_all_summaries(tmp_path):
    log_steps(tmp_path, range(3), first_step=0)
    log_steps(tmp_path, range(2), first_step=0)
    assert steps_of(tmp_path / "train", "loss") == [0, 1]


@pytest.mark.parametrize("broken", ["csv", "events"])
def test_a_failing_writer_logs_one_warning_and_does_not_end_the_training(tmp_path, caplog, monkeypatch, broken):
    if broken == "csv":
        full = open("/dev/full", "w")  # noqa: SIM115 (closed by the log)
        monkeypatch.setattr(summaries, "open", lambda *args, **options: full, raising=False)
    else:

        class Broken:
            def as_default(self, step):
                raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

            flush = close = lambda self: None

        monkeypatch.setattr(tf.summary, "create_file_writer", lambda directory: Broken())
    log = Summaries(tmp_path, tmp_path / "metrics.csv", first_step=0, classes=PETS)
    for step in range(3):
        log.scalars(summaries.TRAIN, step, {"loss": 1.0})
        log.flush()
    log.close()
    (message,) = caplog.messages
    assert message.startswith("summaries cannot be written, training continues: ")
    assert "No space left on device" in message


def test_nested_scores_are_flattened_to_tags():
    scores = {"accuracy": 0.5, "iou": {"pet": 0.25}, "examples": 3, "split": "test"}
    assert summaries.scalars_of(scores) == {"accuracy": 0.5, "iou/pet": 0.25}


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=1000).astype(np.float32),
        np.ones(5, np.float32),
        np.array([1, np.nextafter(1, 2)]),
        np.zeros(3, np.float32),
        np.array([0.0, 5e-324]),
        np.array([-3e38, 3e38], np.float32),
    ],
)
def test_a_histogram_counts_every_value_between_its_edges(tmp_path, values):
    log = Summaries(tmp_path, tmp_path / "metrics.csv", first_step=0, classes=PETS)
    log.histogram(summaries.TRAIN, 3, "weights/kernel", values, "What it is.")
    log.close()
    accumulator = EventAccumulator(str(tmp_path / "train"))
    accumulator.Reload()
    (event,) = accumulator.Tensors("weights/kernel")
    buckets = make_ndarray(event.tensor_proto)
    assert buckets.shape == (30, 3)
    assert buckets[:, 2].sum() == values.size
    assert (buckets[:, 0] < buckets[:, 1]).all()
    assert buckets[0, 0] <= values.min() <= values.max() <= buckets[-1, 1]


def test_a_resumed_run_shows_its_latest_flags_on_the_hparams_page(tmp_path):
    for rate, first_step in ((0.1, 0), (0.2, 3)):
        log = Summaries(tmp_path, tmp_path / "metrics.csv", first_step=first_step, classes=PETS)
        log.begin_session("run", {"learning_rate": rate})
        log.scalars(summaries.FINAL, first_step + 3, {"final/IoU": rate})
        log.end_session()
        log.close()
    found = [
        value.metadata.plugin_data.content
        for file in sorted((tmp_path / "final").iterdir())
        for record in tf.data.TFRecordDataset(str(file))
        for value in event_pb2.Event.FromString(record.numpy()).summary.value
        if value.tag == "_hparams_/session_start_info"
    ]
    (content,) = found
    rate = HParamsPluginData.FromString(content).session_start_info.hparams["learning_rate"].number_value
    assert rate == pytest.approx(0.2)
    assert steps_of(tmp_path / "final", "final/IoU") == [3, 6]


@pytest.mark.parametrize(
    "tail", ["2,train,loss,1e-", "2,train,loss,0.12", "2,train,loss,", "2,tr", "\0\0\0", "x,y,z,w\r\n"]
)
def test_a_run_resumes_with_a_damaged_end_of_its_csv_file(tmp_path, tail):
    file = tmp_path / "metrics.csv"
    file.write_bytes(f"step,run,tag,value\r\n1,train,loss,0.5\r\n{tail}".encode())
    Summaries(tmp_path, file, first_step=2, classes=PETS).close()
    assert list(summaries.read_csv(file)) == [(1, "train", "loss", 0.5)]


def test_what_was_flushed_outlives_a_power_failure_once_synced_and_so_does_what_resuming_keeps(tmp_path, disk_calls):
    with contextlib.closing(Summaries(tmp_path, tmp_path / "metrics.csv", 0, PETS)) as log:
        log.scalars("train", 1, {"loss": 1.0})
        log.flush()
        before = len(disk_calls)
        log.sync()
    (events_file,) = (tmp_path / "train").iterdir()
    synced = {path for name, path in disk_calls[before:] if name == "fsync"}
    assert {str(events_file), str(events_file.parent), str(tmp_path / "metrics.csv")} <= synced
    disk_calls.clear()
    summaries.drop_later_events(tmp_path / "train", 1)
    assert disk_calls[:2] == [("fsync", str(tmp_path / "train" / "kept.tmp")), ("replace", str(events_file))]


def test_events_stay_in_order_though_the_clock_was_set_back(tmp_path):
    for first in (0, 2, 4):
        with contextlib.closing(Summaries(tmp_path, tmp_path / "metrics.csv", first, PETS)) as log:
            for step in (first + 1, first + 2):
                log.scalars("train", step, {"loss": 1.0})
        if first == 2:  # as if both had been begun in 2286
            for i, file in enumerate(sorted((tmp_path / "train").iterdir())):
                parts = file.name.split(".")
                file.rename(file.with_name(".".join([*parts[:3], str(9999999990 + i), *parts[4:]])))
    assert events(tmp_path / "train")["loss"] == [1, 2, 3, 4, 5, 6]


def test_event_files_that_cannot_be_rewritten_are_named_and_unchanged(tmp_path):
    log_steps(tmp_path, range(6), first_step=0)
    before = {file: file.read_bytes() for file in (tmp_path / "train").iterdir()}
    (tmp_path / "train" / "kept.tmp").symlink_to("/dev/full")
    with pytest.raises(WorkDirectoryError, match=rf"^{tmp_path}/train/events\S*: cannot be rewritten: .*No space left"):
        summaries.drop_later_events(tmp_path / "train", 3)
    assert {file: file.read_bytes() for file in (tmp_path / "train").iterdir()} == before


def test_a_full_disk_is_reported_with_the_name_of_the_csv_file(tmp_path):
    (tmp_path / "metrics.csv.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        Summaries(tmp_path, tmp_path / "metrics.csv", first_step=0, classes=PETS)
    assert caught.value.filename == str(tmp_path / "metrics.csv")


def test_a_disk_too_full_for_event_files_is_one_line(tmp_path, monkeypatch):
    def fail(folder):
        raise tf.errors.ResourceExhaustedError(
            None, None, f"{{{{node}}}} {folder}/events; No space left on device\nCreating file"
        )

    monkeypatch.setattr(tf.summary, "create_file_writer", fail)
    message = rf"^{tmp_path}: event files cannot be written: {tmp_path}/train/events; No space left on device$"
    with pytest.raises(WorkDirectoryError, match=message):
        Summaries(tmp_path, tmp_path / "metrics.csv", 0, PETS)


def test_resuming_copies_the_csv_file_in_bounded_memory(tmp_path):
    file = tmp_path / "metrics.csv"
    with open(file, "w") as stream:
        stream.write("step,run,tag,value\r\n")
        stream.writelines(f"{step},train,loss,{step / 7!r}\r\n" for step in range(1, 60_001))
    before = file.read_bytes()
    tracemalloc.start()
    try:
        Summaries(tmp_path, file, first_step=60_000, classes=PETS).close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert file.read_bytes() == before
    assert peak < 8 * 2**20


def test_truncated_and_malformed_rows_of_a_csv_file_are_skipped(tmp_path):
    file = tmp_path / "metrics.csv"
    assert list(summaries.read_csv(file)) == []
    rows = ["step,run,tag,value", "1,train,loss,0.5", "1,train,accuracy,0.5", "2,train,loss,x", "3,train,loss"]
    file.write_text("\n".join([*rows, "4,train,loss,0.25", "5,train,loss,0.1"]))
    expected = [(1, "train", "loss", 0.5), (4, "train", "loss", 0.25)]
    assert list(summaries.read_csv(file, lambda run, tag: tag == "loss")) == expected


def test_texts_and_names_that_are_not_utf_8_are_logged_with_a_replacement(tmp_path):
    path = "data/caf\udce9"  # as Python decodes a file name of other bytes
    with contextlib.closing(Summaries(tmp_path, tmp_path / "metrics.csv", first_step=0, classes=PETS)) as log:
        log.text(0, "config", f"| `--data_dir` | `{path}` |\n")
        log.begin_session(path, {"network": f"{path}/mine.py:build"})
    assert events(tmp_path / summaries.TRAIN)["config"] == [0]
