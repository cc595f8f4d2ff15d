"""The demo page: a real server, and a real browser that looks at it."""

import importlib.util
import json
import os
import signal
import socket
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib

import numpy as np
import pytest
from conftest import ROOT, own_lines, tiny_flags
from PIL import Image
from programs_in_forks import Program

import petseg
from petseg.config import Config, command_line
from petseg.data.drawings import animal_drawing
from petseg.deployment.demo import server as demo_server
from petseg.errors import ConfigError, WorkDirectoryError
from petseg.runs import train

PHOTOGRAPH = animal_drawing.draw(np.random.default_rng(7)).image
JOIN = "/gradio_api/queue/join"
# Starts the page, and writes to its error output what it looks up and connects to.
WATCHED = """
import runpy, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("reaches", arguments[0] if event == "socket.getaddrinfo" else arguments[1][0], file=sys.stderr)
sys.addaudithook(watch)
runpy.run_module("petseg.deployment.demo", run_name="__main__")
"""


def test_a_missing_gradio_is_reported_with_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package gradio: pip install 'petseg\[demo\]'$"):
        demo_server.main(demo_server.DemoConfig())


@pytest.mark.parametrize("workdir", ["nothing/here", "nothing"])
def test_a_run_that_is_not_there_is_refused(workdir):
    with pytest.raises(WorkDirectoryError, match=workdir):
        demo_server.main(demo_server.DemoConfig(workdir=workdir))


class Server:
    """The page of a run of one step with averaged weights, and a photograph and broken files for it."""

    def __init__(self, folder, data_dir):
        self.workdir = folder / "run"
        flags = [*tiny_flags(data_dir, self.workdir), "--train_steps=1", "--ema_decay=0.9"]
        train.train(command_line.parse(["train.py", *flags], Config))
        Image.fromarray(PHOTOGRAPH).save(folder / "my cat.png")
        (folder / "text.jpg").write_text("this is a text")
        header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
        png = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
        (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png))
        (folder / "large.jpg").write_bytes(bytes(1_100_000))
        (folder / "serve.py").write_text(WATCHED)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        flags = [f"--workdir={self.workdir}", f"--port={port}", "--max_upload=1"]
        # Variables of gradio, such as those that open folders, must not apply to this page; nor those of proxies and
        # certificates, since it connects to no other machine.
        nowhere = "http://127.0.0.1:9"
        env = {"GRADIO_ALLOWED_PATHS": "/", "HTTP_PROXY": nowhere, "http_proxy": nowhere, "ALL_PROXY": "socks5://x:9"}
        self.program = Program(str(folder / "serve.py"), *flags, env=env | {"SSL_CERT_FILE": "/nothing/here"})
        deadline = time.monotonic() + 200
        while self.status("/config") != 200:
            assert time.monotonic() < deadline
            assert self.program.poll() is None, self.program.communicate()
            time.sleep(0.1)

    def ask(self, path, body=None, **headers):
        """The status and the text of a response; 0 and nothing without a server."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} | headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, ""
        except OSError:
            return 0, ""

    def status(self, path, body=None):
        return self.ask(path, body)[0]


@pytest.fixture(scope="module")
def server(data_dir, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("demo"), data_dir)
    yield server
    server.program.kill()


@pytest.fixture(scope="module")
def page(server, browser):
    """The page in a browser; `page.requested` are the addresses that it asked for, `page.faults` what went wrong."""
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.requested, page.faults = [], []
    page.on("request", lambda request: page.requested.append(request))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.goto(server.url)
    page.locator("#photo input[type=file]").wait_for(state="attached", timeout=60_000)
    return page


def upload(page, file):
    """Has the page take a file."""
    if page.locator("#photo [aria-label='Clear']").count():
        page.locator("#photo [aria-label='Clear']").click()
    page.locator("#photo input[type=file]").set_input_files(file)


def shown(page, name):
    """A picture that the page shows."""
    image = page.locator(f"#{name} img").first
    image.wait_for(timeout=60_000)
    data = page.request.get(image.get_attribute("src")).body()
    file = os.path.join(page.folder, f"{name}.shown")
    with open(file, "wb") as opened:
        opened.write(data)
    return np.asarray(Image.open(file))


@pytest.mark.slow
def test_a_photograph_is_shown_as_the_segmenter_sees_it(server, page):
    page.folder = server.folder
    upload(page, server.folder / "my cat.png")
    page.locator("#facts .shares").wait_for(timeout=60_000)
    expected = petseg.load(server.workdir)(PHOTOGRAPH)
    np.testing.assert_array_equal(shown(page, "cutout"), np.asarray(expected.cutout()))
    assert shown(page, "confidence").shape == shown(page, "overlay").shape == PHOTOGRAPH.shape
    assert page.locator("#classes img").count() == 1 + len(np.unique(expected.mask))
    facts = page.locator("#facts").inner_text()
    before, asked_before = shown(page, "overlay"), len(page.requested)
    page.locator("#opacity input[type=range]").fill("0")
    while np.abs(shown(page, "overlay") - PHOTOGRAPH.astype(float)).mean() > 5:  # it is a JPEG
        page.wait_for_timeout(100)
    assert np.abs(before - PHOTOGRAPH.astype(float)).mean() > 10
    events = [json.loads(each.post_data)["fn_index"] for each in page.requested if each.url.endswith("queue/join?")]
    later = [each for each in page.requested[asked_before:] if each.url.endswith("queue/join?")]
    redrawn = {json.loads(each.post_data)["fn_index"] for each in later}
    assert len(redrawn) == 1  # the network is not asked again, for that is another event
    assert redrawn.isdisjoint(events[: -len(later)])
    assert page.locator("#facts").inner_text() == facts
    cutout = page.locator("#cutout img").first.get_attribute("src")
    page.locator("#flip input").check()
    page.wait_for_function(  # names of pictures are made of what is in them
        "cutout => ![null, undefined, cutout].includes(document.querySelector('#cutout img')?.getAttribute('src'))",
        arg=cutout, timeout=60_000,
    )  # fmt: skip
    assert page.faults == []
    assert {"best", "latest"} == set(page.locator("#checkpoint").inner_text().split()) - {"Checkpoint"}
    assert page.locator("#averaged input").is_checked()


@pytest.mark.slow
def test_a_drawing_is_segmented_when_it_is_chosen(server, page):
    if page.locator("#photo [aria-label='Clear']").count():
        page.locator("#photo [aria-label='Clear']").click()
    page.locator(".gallery-item, td img, .thumbnail-item").first.click()
    page.locator("#facts .shares").wait_for(timeout=60_000)
    assert page.faults == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("text.jpg", "text.jpg: cannot be read: "),
        ("bomb.png", "bomb.png: 12000 x 12000 pixels are 144 million"),
    ],
)
def test_a_broken_file_gets_a_sentence(server, page, name, sentence):
    upload(page, server.folder / name)
    page.locator("#facts .error", has_text=sentence).wait_for(timeout=30_000)
    for leaked in (str(server.folder), "/tmp", "Traceback"):
        assert leaked not in page.locator("body").inner_text()
    assert not page.locator("#cutout img").count()


@pytest.mark.slow
def test_a_file_that_is_too_large_is_not_taken(server, page):
    upload(page, server.folder / "large.jpg")
    page.get_by_text("exceed the maximum allowed size of 1.0 M").first.wait_for(timeout=30_000)


@pytest.mark.slow
def test_no_file_of_the_machine_can_be_read(server):
    files = [
        "/etc/passwd",
        "/nothing/there.png",
        "/dev/stdin",
        server.folder / "my cat.png",
        server.workdir / "config.json",
        ROOT / "setup.cfg",
        ROOT / "petseg" / "deployment" / "demo" / "server.py",
    ]
    for file in files:
        quoted = urllib.parse.quote(str(file))
        for route in (
            f"/gradio_api/file={quoted}",
            f"/file={quoted}",
            f"/gradio_api/file/{quoted}",
            f"/static/..{quoted}",
        ):
            assert server.status(route) in (403, 404, 405), route
        for keys in ({}, {"meta": {"_type": "gradio.FileData"}}):
            body = {"data": [{"path": str(file), **keys}, "best", True, False, 0.5]}
            for route in ("run/segment", "run/predict", "call/segment", "call/v2/segment", "api/segment"):
                assert server.status(f"/gradio_api/{route}", body | {"fn_index": 0}) in (403, 404), route
            for index in range(4):
                joined = body | {"fn_index": index, "session_hash": "x", "trigger_id": 1}
                assert server.ask(JOIN, joined) == (403, "")
    assert server.status(JOIN, {"data": [{"path": "http://127.0.0.1:1/cat.jpg"}], "fn_index": 0}) == 403
    assert server.status(f"/gradio_api/proxy={server.url}/config") >= 400


def uploaded(server, content):
    """The answer to the upload of a file: the status, and its path on the server."""
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="cat.png"\r\n\r\n%s\r\n--x--\r\n' % content
    status, text = server.ask("/gradio_api/upload", form, **{"Content-Type": "multipart/form-data; boundary=x"})
    return status, json.loads(text)[0] if status == 200 else ""


@pytest.mark.slow
def test_uploads_are_read_whatever_keys_are_missing_and_a_full_queue_is_reported(server):
    status, path = uploaded(server, (server.folder / "my cat.png").read_bytes())
    assert status == 200
    assert server.ask(f"/gradio_api/file={path}")[0] == 200
    body = {"data": [{"path": path}, "best", True, False, 0.5], "session_hash": "mine", "trigger_id": None}
    config = json.loads(server.ask("/config")[1])
    (index,) = [each["id"] for each in config["dependencies"] if len(each["outputs"]) == 6]
    assert server.status("/gradio_api/run/predict", body | {"fn_index": index}) == 404  # only through the queue
    assert server.status(JOIN, body | {"fn_index": index}) == 200
    with urllib.request.urlopen(f"{server.url}/gradio_api/queue/data?session_hash=mine", timeout=60) as stream:
        messages = [json.loads(line[5:]) for line in stream if line.startswith(b"data:")]
    (done,) = [each for each in messages if each["msg"] == "process_completed"]
    assert done["success"]
    assert "with a mean confidence of" in done["output"]["data"][0]
    answers = [server.status(JOIN, body | {"fn_index": index, "session_hash": f"{i}"}) for i in range(60)]
    assert set(answers) == {200, 503}


@pytest.mark.slow
def test_uploads_have_a_limit_in_total(server):
    answers = [uploaded(server, os.urandom(1_000_000))[0] for _ in range(80)]
    assert answers[0] == 200
    assert answers[-1] == 507
    assert 30 < answers.count(200) < 68  # 64 MiB, less what earlier tests uploaded


@pytest.mark.slow
def test_other_sites_cannot_use_the_page(server):
    for headers, status in (
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:7860", "Origin": "http://evil.example:7860"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": server.url}, 200),
    ):
        assert server.ask("/config", **headers)[0] == status
        assert server.ask("/gradio_api/reset", {"event_id": "x"}, **headers)[0] == status


@pytest.mark.slow
def test_ctrl_c_ends_it_quietly_without_requests_to_other_machines(server, page):
    hosts = {urllib.parse.urlsplit(each.url).hostname for each in page.requested if not each.url.startswith("data:")}
    assert hosts == {"127.0.0.1"}
    server.program.send_signal(signal.SIGINT)
    stdout, stderr = server.program.communicate(60)
    assert server.program.returncode == 130
    assert stdout == f"the page is at {server.url}/ (Ctrl-C ends it)\n"
    lines = own_lines(stderr)
    assert {line.split()[1] for line in lines if line.startswith("reaches")} <= {"127.0.0.1", "localhost"}
    lines = [line for line in lines if not line.startswith("reaches")]
    assert lines[-1] == "serve.py: stopped by SIGINT"
    assert stderr.count("Traceback") == stderr.count("it was not uploaded by a user")  # the tests', not the page's
