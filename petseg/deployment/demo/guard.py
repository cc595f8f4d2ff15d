"""What the demo page's server does not let in, before gradio sees it."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_JSON = 2**20  # bytes of a request that is no upload; it names files, it does not hold them
MULTIPART = 2**16  # bytes that a form adds to the file in it
UPLOAD = "/gradio_api/upload"


class Guard:
    """An ASGI middleware that refuses bodies that are too large, or name an address from which to fetch.

    Gradio bounds each uploaded file, but not what else a request holds; and where a request names the address of a
    picture instead of an uploaded one, gradio fetches it, from wherever that is.

    Args:
      app: what is guarded.
      max_upload: largest file that is taken, in bytes.
    """

    def __init__(self, app: Any, *, max_upload: int):
        self._app, self._max_upload = app, max_upload

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        is_upload = scope["path"].rstrip("/") == UPLOAD
        most = self._max_upload + MULTIPART if is_upload else MOST_JSON
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            await _answer(send, 411, "the length of the request must be given")
        elif int(length) > most:
            await _answer(send, 413, f"{int(length)} bytes; must be at most {most}")
        elif is_upload:
            await self._app(scope, receive, send)
        else:
            body = await _whole(receive)
            if names_an_address(body):
                await _answer(send, 403, "a picture must be uploaded; it is not fetched from an address")
            else:
                await self._app(scope, _replay(body, receive), send)


def names_an_address(body: bytes) -> bool:
    """Whether JSON holds a file that is to be fetched, or is no JSON."""
    try:
        return _has_address(json.loads(body or b"null"))
    except (ValueError, RecursionError):
        return True


def _has_address(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_address, value))
    if isinstance(value, dict):
        path = value.get("path")
        return (isinstance(path, str) and "://" in path) or any(map(_has_address, value.values()))
    return False


async def _whole(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, then whatever comes after it."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return unread.pop() if unread else await receive()

    return next_message


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
