"""What the demo page's server lets through to gradio."""

import asyncio
import json

import pytest

from petseg.deployment.demo.guard import MOST_JSON, MULTIPART, UPLOAD, Guard

JOIN = "/gradio_api/queue/join"


def asked(path, body, *, length=None, most=1000):
    """What a guarded app answers to a POST: the status, and the body that came through to the app."""
    sent, seen = [], []

    async def app(scope, receive, send):
        seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200})

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    length = str(len(body)) if length is None else length
    headers = [(b"content-length", length.encode())] if length else []
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    asyncio.run(Guard(app, max_upload=most)(scope, receive, send))
    return sent[0]["status"], seen


def test_the_guard_lets_through_what_the_page_sends():
    for path, body in (
        (UPLOAD, b"x" * 1000),
        (JOIN, json.dumps({"data": [{"path": "/tmp/cat.jpg", "url": "http://127.0.0.1/file=cat"}, 0.5]}).encode()),
        ("/gradio_api/reset", b""),
    ):
        assert asked(path, body) == (200, [body])


@pytest.mark.parametrize(
    ("path", "body", "length", "status"),
    [
        (UPLOAD, b"", str(1001 + MULTIPART), 413),
        (UPLOAD, b"x", "", 411),
        (JOIN, b"[]", "-1", 411),
        (JOIN, b"", str(MOST_JSON + 1), 413),
        (JOIN, b'{"data": [[{"a": {"path": "http://example.com/cat.jpg"}}]]}', None, 403),
        (JOIN, b'{"data": [{"path": "\\u0068ttps://example.com/cat.jpg"}]}', None, 403),
        (JOIN, b"not JSON", None, 403),
        (JOIN, b"[" * 200_000, None, 403),
        ("/gradio_api/call/upload", b'{"path": "http://example.com"}', None, 403),
    ],
)
def test_the_guard_refuses_what_is_too_large_or_fetches_something(path, body, length, status):
    assert asked(path, body, length=length) == (status, [])
