"""--measure=gpu: its budget, what happens when a part fails, and the report. `pytest -m gpu` makes a whole one."""

import importlib
import json
import time

import pytest
import tensorflow as tf
from conftest import changed

from petseg.benchmark import gpu_parts, gpu_report, preloaded
from petseg.benchmark.gpu_report import Case, GpuReportConfig, Part, Recipes
from petseg.errors import PetsegError


@pytest.fixture
def workers(monkeypatch):
    """Replaces processes: each sends the rows that are its arguments; an exception among them is raised."""

    class Worker:
        def __init__(self, rows):
            self.rows = [row for row in rows if not isinstance(row, str | int)] + [None]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def receive(self, seconds):
            assert seconds > 0
            row = self.rows.pop(0)
            if isinstance(row, Exception):
                raise row
            return row

    monkeypatch.setattr(gpu_report.processes, "worker", lambda title, target, function, *rows: Worker(rows))


def test_a_part_that_fails_is_named_and_the_others_go_on(workers, monkeypatch, tmp_path):
    def broken(seconds):
        raise PetsegError("no data")

    def senseless(seconds):
        raise KeyError("digest")

    crash = PetsegError("speed: its process ended")
    cases = [
        Case("speed", ({"images/s": 9.0, "MFU": None}, crash), {"recipe": "best"}),
        Case("speed", ({"images/s": 1e4},)),
    ]
    parts = [
        Part("Broken", 0.1, broken),
        Part("Senseless", 0.1, senseless),
        Part("Checks", 0.1, lambda seconds: [{"check": "same bits", "found": "other bits", "held": False}]),
        Part("Speed", 0.8, lambda seconds: gpu_report.run_cases(cases, seconds)),
        Part("Late", 0.0, lambda seconds: gpu_report.run_cases(cases[:1], seconds)),
    ]
    monkeypatch.setattr(gpu_report, "parts", lambda recipes: parts)
    file = tmp_path / "gpu.md"
    found = gpu_report.measure(GpuReportConfig(report=str(file)), ["--data_dir=d"], tmp_path)
    assert json.loads(file.with_suffix(".json").read_text()) == found
    assert [part["title"] for part in found] == ["Broken", "Senseless", "Checks", "Speed", "Late"]
    lines = file.read_text().splitlines()
    for line in (
        "`python -m petseg.benchmark --measure=gpu --data_dir=d`",
        "- Broken: no data",
        "- Senseless: KeyError: 'digest'",
        "- Checks: same bits, other bits, False",
        "- Speed: best, speed: its process ended",
        "- Late: best, not begun: no time was left",
        "| recipe | images/s | MFU |",
        "| best | 9 |  |",
        "|  | 10000 |  |",
        "| same bits | other bits | no |",
    ):
        assert line in lines


def test_a_target_is_reached_where_it_holds_twice():
    scores = [
        {"mean_iou": iou, "seconds": 10.0 * i, "images": 100 * i} for i, iou in enumerate([0.5, 0.8, 0.7, 0.75, 0.8])
    ]
    assert gpu_report.time_to(0.72, scores) == {"mean IoU": 0.72, "seconds": 40.0, "images": 400}
    assert gpu_report.time_to(0.79, scores)["best score"] == "0.8000"
    assert gpu_report.time_to(0.79, [])["seconds"] is None


def test_checks_of_replicas_train_on_two(monkeypatch, tmp_path):
    def run_case(case, seconds):
        (config,) = case.arguments
        on_two = (config.distribution.strategy, config.distribution.virtual_devices) == ("mirrored", 2)
        scale = {"optimization/skipped_steps": [0, 0, 1, 1, 1], "optimization/loss_scale": [256] * 2 + [128] * 3}
        return [{"series": {"loss": [1.0] * 20, **scale}, "replicas": 2 if on_two else 1}]

    monkeypatch.setattr(gpu_report, "run_case", run_case)
    for check in (gpu_report.split_in_two, gpu_report.overflow):
        assert check(Recipes(True, ["--strategy=auto"], tmp_path), 1.0)["held"]


def test_processes_are_forked_before_any_gpu_is_looked_for(monkeypatch):
    """CUDA cannot be used after a fork."""

    def list_physical_devices(*_):
        raise AssertionError

    monkeypatch.setattr(tf.config, "list_physical_devices", list_physical_devices)
    importlib.reload(preloaded)


@pytest.mark.parametrize("smallest", [False, True])
def test_the_recipes_are_those_of_the_presets_in_all_precisions(smallest, tmp_path):
    recipes = Recipes(smallest, ["--data_dir=elsewhere", "--seed=3"], tmp_path)
    cases = gpu_report.speed_cases(recipes)
    found = {(case.title["recipe"], case.title["precision"], case.title["XLA"]) for case in cases}
    names = ("best",) if smallest else ("best", "tutorial")
    assert found >= {(name, kind, "off") for name in names for kind in gpu_report.ARITHMETIC}
    assert ("best", "float32 with TF32", "on") in found
    for case in cases:
        config, kind = case.arguments[0], case.title["precision"]
        assert config.compute.precision.removeprefix("mixed_") == kind.removesuffix(" with TF32")
        assert config.compute.tensor_float_32 == (kind != "float32")
        assert config.compute.jit_compile == (case.title["XLA"] == "on")
        assert config.data.data_dir == str(tmp_path / "drawn")
        assert config.runtime.seed == 3
    assert recipes.preset("best", drawn=False).data.data_dir == (str(tmp_path / "drawn") if smallest else "elsewhere")
    assert recipes.preset("best", drawn=False).data.size == ((32, 32) if smallest else (128, 128))
    if not smallest:
        assert {size for case in cases for size in case.arguments[1]} >= {8, 64, 512}
    (without_data,) = gpu_report.parts(Recipes(False, [], tmp_path))[-1:]
    with pytest.raises(PetsegError, match="--data_dir: must name a folder with Oxford-IIIT Pet"):
        without_data.rows(1.0)


@pytest.mark.slow
def test_a_speed_has_its_operations_and_the_share_of_the_peak(tiny_config):
    rows = []
    config = changed(changed(tiny_config, "runtime", deterministic=False), "compute", peak_tflops=2.0)
    gpu_parts.speed(rows.append, config, (4, 0), 0.01, True)
    row, failed = rows
    assert row["batch"] == 4
    assert row["images/s"] > 0
    assert row["MFU"] == pytest.approx(row["TFLOP/s"] / 2)
    assert row["ops a step"] > 300
    assert row["launches a step"] is None  # there is no GPU
    assert "--batch_size=0: must be" in failed["error"]


@pytest.mark.slow
def test_the_run_of_a_check_tells_its_losses_and_its_bits(tiny_config):
    rows = []
    config = changed(changed(tiny_config, "schedule", summary_every=1), "runtime", quiet=True)
    gpu_parts.trained(rows.append, config)
    (row,) = rows
    assert len(row["series"]["loss"]) == 4
    assert (len(row["digest"]), row["replicas"]) == (64, 1)
    again = changed(config, "runtime", workdir=config.runtime.workdir + "-again")
    gpu_parts.trained(rows.append, again)
    assert rows[1] == row


def test_launches_are_those_of_the_gpus_streams(monkeypatch):
    space = gpu_parts.xplane_pb2.XSpace()
    for plane, line, events in (
        ("/device:GPU:0", "Stream #14(Compute)", 9), ("/device:GPU:0", "Stream #15(MemcpyH2D)", 3),
        ("/device:GPU:0", "XLA Ops", 5), ("/host:CPU", "Stream of thoughts", 7),
    ):  # fmt: skip
        added = space.planes.add(name=plane).lines.add(name=line)
        for _ in range(events):
            added.events.add()

    def start(folder):
        file = tf.io.gfile.join(folder, "run.xplane.pb")
        tf.io.gfile.GFile(file, "wb").write(space.SerializeToString())

    monkeypatch.setattr(tf.profiler.experimental, "start", start)
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: time.sleep(0))
    trainer = type("Trainer", (), {"run": lambda self, batches, steps: None})()
    assert gpu_parts.launches(trainer, None) == 12 / gpu_parts.PROFILED_STEPS
