"""ASGI middleware that refuses requests before gradio sees them: hosts, paths, sizes, files."""

import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, NamedTuple

from petseg.deployment.demo.uploads import Uploads

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_JSON = 2**20  # bytes of a request that is not an upload; it names files only
MULTIPART = 2**16  # bytes that a form adds to the file in it
RESULTS = 32 * 2**20  # upper bound on the bytes of one segmentation's result images
HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(:\d{1,5})?")
API = "/gradio_api"
UPLOAD, JOIN, FILE = f"{API}/upload", f"{API}/queue/join", f"{API}/file="
RUN = f"{API}/run/predict"  # bypasses the queue; the page uses it only to choose a drawing
# Everything that the page requests; gradio serves much more.
POSTED = (UPLOAD, JOIN, RUN, f"{API}/reset", f"{API}/cancel")
READ = (
    "", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", f"{API}/theme.css", f"{API}/info",
    f"{API}/app_id", f"{API}/startup-events", f"{API}/queue/data", f"{API}/upload_progress",
)  # fmt: skip
READ_BELOW = ("/assets/", "/static/", "/svelte/", "/pwa_icon", f"{API}/heartbeat/")


class Refusal(NamedTuple):
    """An HTTP error response: status and text."""

    status: int
    text: str


class Hosts:
    """Checks the headers Host and Origin, against DNS rebinding and requests from other sites.

    With DNS rebinding, another site's name resolves to this machine; IP addresses are safe from that.

    Args:
      any_address: whether to accept any IP address, not only those of the loopback interface.
      trusted: further host names, such as a proxy's, which are accepted as origins, too.
    """

    def __init__(self, names: Collection[str], *, any_address: bool = False, trusted: Collection[str] = ()):
        self._names, self._any_address, self._trusted = {*names, *trusted}, any_address, set(trusted)

    def refusal(self, headers: Collection[tuple[bytes, bytes]]) -> Refusal | None:
        """The response to a request with a wrong Host or Origin; None if both are right."""
        hosts = [value.decode("latin-1").lower() for key, value in headers if key == b"host"]
        if len(hosts) != 1 or not self._is_expected(_name(hosts[0])):
            return Refusal(421, "Host: is not a name of this page; --allowed_hosts adds names")
        for origin in (value.decode("latin-1").lower() for key, value in headers if key == b"origin"):
            scheme, _, place = origin.partition("://")
            if scheme not in ("http", "https") or (place != hosts[0] and _name(place) not in self._trusted):
                return Refusal(403, "Origin: pages of other sites cannot use this one")
        return None

    def _is_expected(self, name: str) -> bool:
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address or address.is_loopback


class Guard:
    """An ASGI middleware that passes only the requests that the page needs.

    Gradio limits each uploaded file, but neither other parts of a request nor all files together; it reads any file
    that is named without gradio's own mark, and fetches addresses that are named in place of a file.
    """

    def __init__(self, app: Any, *, hosts: Hosts, uploads: Uploads, max_upload: int):
        self._app, self._hosts, self._uploads, self._max_upload = app, hosts, uploads, max_upload

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":  # the page uses no web sockets
            await send({"type": "websocket.close"})
        elif refusal := self._hosts.refusal(scope["headers"]) or self._refused_path(scope):
            await _answer(send, *refusal)
        elif scope["method"] != "POST":
            await self._app(scope, receive, send)
        elif refusal := self._refused_length(scope):
            await _answer(send, *refusal)
        elif _path(scope) == UPLOAD:
            await self._upload(scope, receive, send)
        else:
            body = await _read_body(receive)
            if refusal := self._refused_body(_path(scope), body):
                await _answer(send, *refusal)
            else:
                await self._app(scope, _replay(body, receive), send)

    def _refused_path(self, scope: Message) -> Refusal | None:
        path = _path(scope)
        if scope["method"] == "POST" and path in POSTED:
            return None
        if scope["method"] in ("GET", "HEAD"):
            if path in READ or path.startswith(READ_BELOW):
                return None
            if path.startswith(FILE) and self._uploads.resolve(scope["path"].removeprefix(FILE)):
                return None
        return Refusal(404, "there is nothing here")

    def _refused_length(self, scope: Message) -> Refusal | None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        # A chunked body may be longer than its Content-Length.
        if not length.isdigit() or b"transfer-encoding" in headers:
            return Refusal(411, "the length of the request must be given")
        most = self._max_upload + MULTIPART if _path(scope) == UPLOAD else MOST_JSON
        if int(length) > most:
            return Refusal(413, f"{int(length)} bytes; must be at most {most}")
        return None

    async def _upload(self, scope: Message, receive: Receive, send: Send) -> None:
        size = int(dict(scope["headers"])[b"content-length"])
        if not self._uploads.make_room(size):
            await _answer(send, 507, "the limit of stored uploads is reached; try again in a minute")
            return
        self._uploads.reserve(size)
        try:
            await self._app(scope, receive, send)
        finally:
            self._uploads.reserve(-size)

    def _refused_body(self, path: str, body: bytes) -> Refusal | None:
        try:
            value = json.loads(body or b"null")
            if not all(self._uploads.resolve(file) for file in _named_files(value)):
                return Refusal(403, "the image must be uploaded first")
        except (ValueError, RecursionError):
            return Refusal(403, "the request must be JSON")
        if path == JOIN and not self._uploads.make_room(RESULTS):
            return Refusal(507, "the limit of stored images is reached; try again in a minute")
        return None


def _named_files(value: Any) -> list[Any]:
    """All values of `path` in JSON."""
    if isinstance(value, list):
        return [file for each in value for file in _named_files(each)]
    if isinstance(value, dict):
        own = [value["path"]] if value.get("path") is not None else []
        return own + [file for each in value.values() for file in _named_files(each)]
    return []


def _name(host: str) -> str:
    """The host name in `name:port`, without the brackets of an IPv6 address; empty if it is malformed."""
    match = HOST.fullmatch(host)
    return (match["name"] or match["address"]) if match else ""


def _path(scope: Message) -> str:
    return scope["path"].rstrip("/")


async def _read_body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that repeats a body that was already read, then continues."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return unread.pop() if unread else await receive()

    return next_message


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
