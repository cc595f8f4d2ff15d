"""Runs with several seeds: training, table of scores, group scoring and comparison."""

import csv
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import NUM_TEST, ROOT, changed, small_flags
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from petseg.config import Config, command_line, with_run_defaults
from petseg.config.eval_config import EvalConfig, ScoreConfig
from petseg.errors import ConfigError
from petseg.evaluation import score_tables
from petseg.files import read_json
from petseg.runs import group_scoring, run_groups, seeds, train
from petseg.runs.seeds import SeedsConfig
from petseg.runs.work_directory import WorkDirectory


def parse(*flags):
    return command_line.parse(["seeds.py", *flags], SeedsConfig)


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
    """Two experiments: `a` with seeds 0 and 1, and `b`, which has a copy of the second of these runs."""
    folder = tmp_path_factory.mktemp("runs")
    config = parse(*small_flags(data_dir, folder / "a"), "--seeds=0,1", "--train_steps=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds, "train_in_a_process", train.train)
        seeds.main(config)
    shutil.copytree(folder / "a" / "seed-1", folder / "b" / "seed-1")
    return folder


def last_results(workdir):
    return read_json(group_scoring.last_results_file(WorkDirectory(workdir).load_config()))


def test_each_run_equals_training_with_its_seed(folder, data_dir):
    for seed in (0, 1):
        config = WorkDirectory(folder / "a" / f"seed-{seed}").load_config()
        flags = [*small_flags(data_dir, folder / "a" / f"seed-{seed}"), f"--seed={seed}", "--train_steps=2"]
        expected = with_run_defaults(command_line.parse(["train.py", *flags], Config), None)
        found_in_data = {"channels": 3, "image_dtype": "uint8", "intensity_range": "0,255"}
        assert config == expected.changed(data=found_in_data)


def test_flags_of_a_config_parse_to_the_same_config(tiny_config):
    config = changed(changed(tiny_config, "model", sync_batch_norm=False), "augmentation", rotation=0.25)
    assert command_line.parse(["train.py", *seeds.flags_of(config)], Config) == config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=runs/a", "--seeds=0,x"], "--seeds=0,x: must be different whole numbers, separated by commas"),
        (["--workdir=runs/a", "--seeds=1,1"], "--seeds=1,1: must be different whole numbers"),
        (["--workdir=runs/a", "--seed=3"], "--seed=3: must not be given; the seeds are those of --seeds"),
        ([], "--workdir: must be the folder of the runs' work directories"),
    ],
)
def test_invalid_seeds_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse(*flags)


def test_a_work_directory_is_refused_as_a_folder_of_runs(folder, data_dir):
    with pytest.raises(ConfigError, match="is itself a run; must be a folder for those of --seeds"):
        seeds.main(parse(*small_flags(data_dir, folder / "a" / "seed-0")))


def test_the_table_of_runs_shows_mean_and_spread():
    def results(score):
        return {"split": "test", "step": 4, "mean_iou": score, "accuracy": 0.9, "iou": {"cat": score, "dog": 0.5}}

    lines = score_tables.runs_table({"a": results(0.7), "b": results(0.72), "c": results(0.77)}).splitlines()
    assert lines[0] == "test, 3 runs"
    rows = {line[:20].strip(): line[20:].split() for line in lines[2:]}
    assert rows["b"] == ["4", "0.7200", "0.9000", "0.7200", "0.5000"]
    assert rows["mean"] == ["0.7300", "0.9000", "0.7300", "0.5000"]
    assert rows["standard deviation"][0] == "0.0361"
    assert (rows["lowest"][0], rows["highest"][0]) == ("0.7000", "0.7700")
    assert np.isnan(score_tables.statistics([0.5])["standard deviation"])


def score(**options):
    paths = {name: str(value) if name != "flip_tta" else value for name, value in options.items()}
    return ScoreConfig(**paths, allow_code=True)


@pytest.mark.slow
def test_groups_are_scored_and_compared_over_their_seeds(folder, capsys, tmp_path):
    flags = score(workdir=folder / "a", compare=folder / "b", csv=tmp_path / "images.csv")
    assert run_groups.names_several_runs(flags)
    results = group_scoring.evaluate(EvalConfig(flags))
    assert len(results) == 2
    comparison = results[0]["comparison"]
    assert comparison["runs"] == [f"{folder}/a/seed-{seed}/checkpoints/ckpt-2" for seed in (0, 1)]
    assert comparison["other"] == [f"{folder}/b/seed-1/checkpoints/ckpt-2"]
    trained = [last_results(folder / "a" / f"seed-{seed}") for seed in (0, 1)]
    scores = [run["mean_iou"] for run in trained]
    assert comparison["difference"] == pytest.approx(np.mean(scores) - scores[1])
    low, high = comparison["interval"]
    assert low < comparison["difference"] < high
    printed = capsys.readouterr().out
    assert f"{np.mean(scores):.4f}" in next(line for line in printed.splitlines() if line.startswith("mean   "))
    assert "first: 2 runs, second: 1 runs; 95% interval over images and seeds" in printed
    assert (folder / "a" / "seed-0" / "figures" / "comparison.png").exists()
    with open(tmp_path / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [str(folder / "a" / f"seed-{i}") for i in (0, 1) for _ in range(NUM_TEST)]


def test_flags_that_need_a_single_run_refuse_a_group(folder):
    assert not run_groups.names_several_runs(score(workdir=folder / "b", compare=folder / "a" / "seed-0"))
    with pytest.raises(ConfigError, match=r"--workdir=.*/a: holds 2 runs; must be one with --watch, --predict"):
        run_groups.names_several_runs(score(workdir=folder / "a", checkpoint="all"))
    with pytest.raises(ConfigError, match=r"--compare=.*/a: holds 2 runs"):
        run_groups.names_several_runs(score(workdir=folder / "b", compare=folder / "a", checkpoint="some/ckpt-4"))


def test_hparams_shows_the_runs_of_a_recipe_as_one_group_with_their_mean(folder):
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder / "a"))
    multiplexer.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    metric = api_pb2.ColParams(metric=api_pb2.MetricName(group="", tag="final/IoU"))
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=9, allowed_statuses=[api_pb2.STATUS_SUCCESS], col_params=[metric]
    )
    (group,) = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    assert group.name == f"a ({folder})"
    assert sorted(session.name for session in group.sessions) == ["seed-0/final", "seed-1/final"]
    assert "seed" not in group.hparams
    scores = [last_results(folder / "a" / f"seed-{seed}") for seed in (0, 1)]
    (mean,) = [value.value for value in group.metric_values if value.name.tag == "final/IoU"]
    assert mean == pytest.approx(np.mean([run["mean_iou"] for run in scores]))


def program(data_dir, folder, *flags):
    flags = [*small_flags(data_dir, folder), "--eval_every=1000", "--checkpoint_every=1000", *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "petseg.runs.seeds", "--seeds=0,1", *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.soak
def test_training_several_seeds_resumes_after_a_kill_and_after_a_stop(data_dir, tmp_path):
    begun = tmp_path / "seed-0" / "metrics.csv"
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
        process = program(data_dir, tmp_path, "--train_steps=100000", "--summary_every=4")
        deadline, size = time.monotonic() + 200, begun.stat().st_size if begun.exists() else 0
        while not begun.exists() or begun.stat().st_size < size + 1000:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)  # the run's own process has ended too, for it holds the pipe
        assert process.returncode == code
    step = int(stderr.split("stopped by SIGTERM at step ")[1].split(";")[0])
    process = program(data_dir, tmp_path, f"--train_steps={step + 4}")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert f"resumed from {tmp_path}/seed-0/checkpoints/ckpt-{step}" in stderr
    assert "standard deviation" in stdout
    assert (tmp_path / "seed-1" / "checkpoints" / f"ckpt-{step + 4}.index").exists()
