"""The demo page's guard passes the page's own requests and refuses all others."""

import asyncio
import json
import os
import time

import pytest

from petseg.deployment.demo.guard import FILE, JOIN, MOST_JSON, MULTIPART, UPLOAD, Guard, Hosts
from petseg.deployment.demo.uploads import Uploads

HOST = (b"host", b"127.0.0.1:7860")
MIB = 2**20


@pytest.fixture
def uploads(tmp_path):
    """The folder of a page, with a picture in it."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cat.jpg").write_bytes(b"cat")
    return Uploads(tmp_path / "cache", quota=64 * MIB)


def asked(uploads, method, path, body=b"", *, headers=None, most=1000, hosts=None):
    """What a guarded app answers: the status, and the bodies that came through to the app."""
    sent, seen = [], []

    async def app(scope, receive, send):
        seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200})

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [HOST, (b"content-length", str(len(body)).encode())] if headers is None else headers
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    guard = Guard(app, hosts=hosts or Hosts({"localhost"}), uploads=uploads, max_upload=most)
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], seen


def test_requests_of_the_page_pass(uploads, tmp_path):
    photo = {"path": str(tmp_path / "cache" / "cat.jpg"), "url": "http://127.0.0.1/file=cat"}
    for path, body in (
        (UPLOAD, b"x" * 1000),
        (JOIN, json.dumps({"data": [photo, 0.5]}).encode()),
        (JOIN, b'{"data": [null, "best", true, false, 0.5]}'),
        ("/gradio_api/reset", b""),
    ):
        assert asked(uploads, "POST", path, body) == (200, [body])
    for path in ("/", "/config", "/assets/index.js", "/gradio_api/queue/data", f"{FILE}{photo['path']}"):
        assert asked(uploads, "GET", path)[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "more", "status"),
    [
        (UPLOAD, b"", {b"content-length": str(1001 + MULTIPART).encode()}, 413),
        (UPLOAD, b"x", {}, 411),
        (UPLOAD, b"x", {b"content-length": b"1", b"transfer-encoding": b"chunked"}, 411),
        (JOIN, b"[]", {b"content-length": b"-1"}, 411),
        (JOIN, b"", {b"content-length": str(MOST_JSON + 1).encode()}, 413),
        (JOIN, b"not JSON", {b"content-length": b"8"}, 403),
        (JOIN, b"[" * 200_000, {b"content-length": b"200000"}, 403),
        ("/gradio_api/call/segment", b"{}", {b"content-length": b"2"}, 404),
        ("/gradio_api/api/predict", b"{}", {b"content-length": b"2"}, 404),
        ("/gradio_api/component_server", b"{}", {b"content-length": b"2"}, 404),
        ("/login", b"", {b"content-length": b"0"}, 404),
    ],
)
def test_requests_that_are_too_large_or_not_of_the_page_are_refused(uploads, path, body, more, status):
    assert asked(uploads, "POST", path, body, headers=[HOST, *more.items()]) == (status, [])


@pytest.mark.parametrize("keys", [{}, {"meta": {"_type": "gradio.FileData"}}, {"meta": None}, {"url": "x", "size": 1}])
def test_requests_may_name_only_uploaded_files(uploads, tmp_path, keys):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (tmp_path / "cache" / "link.png").symlink_to(secret)
    os.mkfifo(tmp_path / "cache" / "pipe.png")
    answers = set()
    for path in (
        str(secret), str(tmp_path / "nothing.png"), "/dev/stdin", "/dev/zero", "/proc/self/environ", "/etc/passwd",
        str(tmp_path / "cache" / ".." / "secret.png"), str(tmp_path / "cache" / "link.png"),
        str(tmp_path / "cache" / "pipe.png"), str(tmp_path / "cache"), str(tmp_path / "cache" / "gone.png"), "", "a\0b",
        "x" * 5000, 7, ["/etc/passwd"], "http://example.com/cat.jpg", "\u0068ttps://example.com/cat.jpg",
        "file:///etc/passwd",
    ):  # fmt: skip
        for data in ([{"path": path, **keys}], [[{"a": {"path": path, **keys}}]]):
            answers.add(asked(uploads, "POST", JOIN, json.dumps({"data": data}).encode())[0])
        if isinstance(path, str):
            answers.add(asked(uploads, "GET", f"{FILE}{path}")[0])
    assert answers == {403, 404}  # one for posts, one for reads: requests do not reveal which files exist


@pytest.mark.parametrize(
    "path", ["/gradio_api/file/etc/passwd", "/gradio_api/proxy=http://x/", "/docs", "/gradio_api/dev/reload", "/token"]
)
def test_other_paths_and_methods_are_refused(uploads, path):
    assert asked(uploads, "GET", path)[0] == 404
    assert asked(uploads, "DELETE", "/")[0] == asked(uploads, "OPTIONS", JOIN)[0] == 404


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:7860", None, 200),
        ("localhost:8000", "http://localhost:8000", 200),
        ("[::1]:7860", "http://[::1]:7860", 200),
        ("evil.example:7860", None, 421),
        ("127.0.0.1.evil.example", None, 421),
        ("192.168.1.7:7860", None, 421),
        ("evil.example@127.0.0.1", None, 421),
        ("127.0.0.1#.evil.example", None, 421),
        ("127.0.0.1:7860/evil.example", None, 421),
        ("", None, 421),
        ("127.0.0.1:7860", "http://evil.example", 403),
        ("127.0.0.1:7860", "http://127.0.0.1:8888", 403),  # another page of this machine
        ("127.0.0.1:7860", "null", 403),
        ("page.example", "https://page.example", 200),  # --allowed_hosts
        ("127.0.0.1:7860", "https://page.example", 200),
    ],
)
def test_foreign_hosts_and_origins_are_refused(uploads, host, origin, status):
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
    hosts = Hosts({"localhost"}, trusted={"page.example"})
    for method, path in (("GET", "/"), ("POST", "/gradio_api/reset")):
        more = [(b"content-length", b"0")]
        assert asked(uploads, method, path, headers=headers + more, hosts=hosts)[0] == status
    assert asked(uploads, "GET", "/", headers=[], hosts=hosts)[0] == 421


def test_a_page_that_is_open_to_others_takes_addresses_and_its_own_name():
    hosts = Hosts({"localhost", "server"}, any_address=True)
    for name, expected in (("10.0.0.7:80", True), ("server", True), ("SERVER:80", True), ("evil.example", False)):
        assert (hosts.refusal([(b"host", name.encode())]) is None) == expected


def test_uploads_take_no_more_than_their_quota(uploads, tmp_path):
    folder = tmp_path / "cache"
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(bytes(20 * MIB))
    length = [(b"content-length", str(10 * MIB).encode())]
    assert asked(uploads, "POST", UPLOAD, headers=[HOST, *length], most=20 * MIB)[0] == 507
    photo = json.dumps({"data": [{"path": str(folder / "cat.jpg")}]}).encode()
    assert asked(uploads, "POST", JOIN, photo)[0] == 507  # what is made of it takes room, too
    for i in range(3):
        os.utime(folder / f"{i}.jpg", (time.time() - 200 + i,) * 2)
    assert asked(uploads, "POST", UPLOAD, headers=[HOST, *length], most=20 * MIB)[0] == 200
    assert sorted(path.name for path in folder.iterdir()) == ["1.jpg", "2.jpg", "cat.jpg"]  # the oldest has gone


def test_running_uploads_count(uploads):
    uploads.reserve(60 * MIB)
    assert not uploads.make_room(5 * MIB)
    uploads.reserve(-60 * MIB)
    assert uploads.make_room(5 * MIB)
