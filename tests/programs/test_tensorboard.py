"""A killed and resumed run in a real TensorBoard, through its HTTP API and in a browser."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import NUM_TEST, ROOT, tiny_flags
from PIL import Image
from programs_in_forks import Program

from petseg.classes import PETS
from petseg.reporting import tags

pytestmark = pytest.mark.slow
ARTIFACTS = Path(os.environ.get("PETSEG_TEST_ARTIFACTS", ROOT / "test-artifacts"))
SCORES = ["loss", "accuracy", "mean_iou", "foreground_iou"]
SCORES += [f"{score}/{name}" for score in ("iou", "dice", "precision", "recall") for name in PETS.names]
OF_TRAINING = sorted({*tags.SCALARS, *SCORES})


def train(data_dir, workdir, *flags):
    intervals = ["--summary_every=4", "--checkpoint_every=5", "--eval_every=10", "--histogram_every=10"]
    return Program("train.py", *tiny_flags(data_dir, workdir), *intervals, "--nodeterministic", *flags, draws=True)


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    """A folder with two runs of a sweep: `killed`, in the middle, and complete since; `faster`, at another rate."""
    folder = tmp_path_factory.mktemp("runs")
    killed = train(data_dir, folder / "killed", "--train_steps=100000")
    faster = train(data_dir, folder / "faster", "--train_steps=12", "--learning_rate=0.003", "--class_weights=1,1,2")
    deadline = time.monotonic() + 200
    while not (folder / "killed" / "results" / "test-10.json").exists():
        assert time.monotonic() < deadline
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.05)
    time.sleep(0.3)  # somewhere behind step 10, between two checkpoints
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    resumed = train(data_dir, folder / "killed", "--train_steps=40", "--profile_steps=35:37")
    for process in (faster, resumed):
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    assert "resumed from" in stderr
    return folder


class TensorBoard:
    """A TensorBoard on the loopback interface."""

    def __init__(self, logdir):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "tensorboard.main", "--load_fast=false", "--reload_interval=1"]
        self.process = subprocess.Popen(
            [*command, f"--logdir={logdir}", "--host=127.0.0.1", f"--port={port}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def get(self, path, body=None, **query):
        url = f"{self.url}/data/{path}" + ("?" + urllib.parse.urlencode(query) if query else "")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read()

    def json(self, path, body=None, **query):
        return json.loads(self.get(path, body, **query))


@pytest.fixture(scope="module")
def board(runs):
    """A TensorBoard that has read both runs."""
    board = TensorBoard(runs)
    expected = {f"{run}/{part}" for run in ("killed", "faster") for part in ("train", "eval", "final")}
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                if set(board.json("plugin/scalars/tags")) == expected:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.5)
        time.sleep(3)  # it has begun to read; let it come to the end
        yield board
    finally:
        board.process.kill()


def test_scalars_have_descriptions_and_strictly_increasing_steps(board):
    found = board.json("plugin/scalars/tags")
    assert set(found["killed/train"]) == set(OF_TRAINING)
    assert set(found["killed/eval"]) == set(SCORES)
    assert set(found["killed/final"]) == set(tags.final(PETS))
    steps = {"train": list(range(4, 41, 4)), "eval": list(range(10, 41, 10)), "final": list(range(10, 41, 10))}
    for part, expected in steps.items():
        for tag, facts in found[f"killed/{part}"].items():
            assert facts["description"], tag
            points = board.json("plugin/scalars/scalars", run=f"killed/{part}", tag=tag)
            assert [step for _, step, _ in points] == expected, (part, tag)


def test_images_decode_to_the_size_of_the_figures(board, runs):
    found = board.json("plugin/images/tags")
    once, each = {"model", "training_batch"}, {"predictions", "worst", "best", "confusion_matrix"}
    assert set(found["killed/train"]) == once
    assert set(found["killed/eval"]) == each
    for part, tag in [("train", tag) for tag in once] + [("eval", tag) for tag in each]:
        assert found[f"killed/{part}"][tag]["description"], tag
        logged = board.json("plugin/images/images", run=f"killed/{part}", tag=tag, sample=0)
        expected = [0] if tag in once else list(range(0 if tag == "predictions" else 10, 41, 10))
        assert [image["step"] for image in logged] == expected
        picture = Image.open(io.BytesIO(board.get("plugin/images/individualImage?" + logged[-1]["query"])))
        assert min(picture.size) >= 400, tag
        figure = runs / "killed" / "figures" / f"{tag}.png"
        assert picture.format == ("PNG" if tag in ("model", "confusion_matrix") else "JPEG")
        if figure.exists():
            difference = np.abs(np.asarray(picture, np.int16) - np.asarray(Image.open(figure), np.int16))
            assert difference.mean() <= (0 if picture.format == "PNG" else 5)
    names = {path.name for path in (runs / "killed" / "figures").iterdir()}
    assert names == {"predictions.png", "confusion_matrix.png", "model.png", "curves.png"}


def test_histograms_of_weights_gradients_and_image_scores_are_logged(board):
    found = board.json("plugin/histograms/tags")
    assert set(found["killed/eval"]) == {tags.IMAGE_IOU}
    names = [tag.removeprefix("weights/") for tag in found["killed/train"] if tag.startswith("weights/")]
    assert "logits/kernel" in names
    assert set(found["killed/train"]) == {f"{kind}/{name}" for kind in ("weights", "gradients") for name in names}
    logged = board.json("plugin/histograms/histograms", run="killed/train", tag="gradients/logits/kernel")
    assert [step for _, step, _ in logged] == list(range(10, 41, 10))
    scores = board.json("plugin/histograms/histograms", run="killed/eval", tag=tags.IMAGE_IOU)
    assert all(sum(count for _, _, count in buckets) == NUM_TEST for _, _, buckets in scores)


def test_texts_graph_and_custom_scalars_layout_are_logged(board):
    assert set(board.json("plugin/text/tags")["killed/train"]) == {"config", "run", "data"}
    (config,) = board.json("plugin/text/text", run="killed/train", tag="config")
    assert "--learning_rate" in config["text"]
    (data,) = board.json("plugin/text/text", run="killed/train", tag="data")
    assert "synthetic_pets" in data["text"]
    graph = board.get("plugin/graphs/graph", run="killed/train", conceptual="false").decode()
    assert "Conv2DBackpropInput" in graph  # what a transposed convolution is
    layout = board.json("plugin/custom_scalars/layout")
    assert [category["title"] for category in layout["category"]] == ["overview", "classes", "optimization", "speed"]
    charted = {tag for category in layout["category"] for chart in category["chart"]
               for tag in chart["multiline"]["tag"]}  # fmt: skip
    for tag in charted - {f"^{tag}$" for tag in tags.ON_GPUS}:
        assert board.json("plugin/custom_scalars/scalars", run="killed/train", tag=tag)["regex_valid"]
        points = board.json("plugin/custom_scalars/scalars", run="killed/train", tag=tag)["tag_to_events"]
        assert len(points) == 1, tag


def test_hparams_lists_all_runs_with_flags_and_last_scores(board, runs):
    experiment = board.json("plugin/hparams/experiment", {"experimentName": ""})
    assert {info["name"] for info in experiment["hparamInfos"] if info["differs"]} == {
        "learning_rate", "class_weights", "train_steps"
    }  # fmt: skip
    columns = [{"metric": info["name"]} for info in experiment["metricInfos"]]
    assert {info["name"]["tag"] for info in experiment["metricInfos"]} == set(tags.final(PETS))
    request = {"startIndex": 0, "sliceSize": 10, "colParams": columns, "allowedStatuses": ["STATUS_SUCCESS"]}
    groups = board.json("plugin/hparams/session_groups", request)["sessionGroups"]
    rows = {group["name"]: group for group in groups}
    assert set(rows) == {f"killed ({runs})", f"faster ({runs})"}
    for name, rate, step in (("killed", 0.001, 40), ("faster", 0.003, 12)):
        row = rows[f"{name} ({runs})"]
        assert row["hparams"]["learning_rate"] == pytest.approx(rate)
        assert row["sessions"][0]["status"] == "STATUS_SUCCESS"
        values = {value["name"]["tag"]: value["value"] for value in row["metricValues"]}
        results = json.loads((runs / name / "results" / f"test-{step}.json").read_text())
        assert values["final/IoU"] == pytest.approx(results["mean_iou"], rel=1e-5)


def test_the_profile_is_in_the_folder_of_the_profile_plugin(runs):
    (profile,) = (runs / "killed" / "train" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert b"step_num" in profile.read_bytes()


def test_the_profile_plugin_opens_it(runs):
    convert = pytest.importorskip("xprof.convert.raw_to_tool_data", reason="xprof, the profile plugin, is not there")
    files = [str(path) for path in runs.glob("killed/train/plugins/profile/*/*.xplane.pb")]
    data, _ = convert.xspace_to_tool_data(files, "trace_viewer", {})
    steps = [event["args"]["step_num"] for event in json.loads(data)["traceEvents"] if event.get("name") == "train"]
    assert steps == ["35", "36"]


PAGES = {
    "timeseries": ["killed/train", "accuracy"],
    "scalars": ["killed/train", "accuracy", "optimization"],
    "custom_scalars": ["overview", "mean IoU", "accuracy"],
    "images": ["predictions", "confusion_matrix", "worst"],
    "hparams": ["learning_rate", "class_weights", "final/IoU", "0.0030000"],
    "text": ["--learning_rate"],
    "graphs": ["Main Graph"],
    "histograms": ["gradients"],
    "distributions": ["gradients"],
}


@pytest.mark.parametrize("name", PAGES)
def test_a_browser_shows_the_page_without_an_error(board, browser, name):
    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{board.url}/#{name}")
    for text in PAGES[name]:
        page.get_by_text(text).first.wait_for(state="attached", timeout=60_000)
    if name == "images":
        page.wait_for_function("() => document.readyState == 'complete'")
        page.locator("img").first.wait_for(state="visible", timeout=60_000)
        assert page.locator("img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") >= 400
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(500)  # charts are drawn after their data are there
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"tensorboard-{name}.png")
    page.close()
    assert not errors
