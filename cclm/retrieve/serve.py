"""`cclm search --serve`: a local page with a query box, its results, and small images.

    GET /?q=TEXT          the page; all that it needs is in it (no outside resource, no script needed)
    GET /image/7          image number 7 of the embedded set, made small; /image/7/large; nothing else is served

A page of another site must not read what is served here (DNS rebinding): bound to this machine, only requests that name
this machine are answered.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError, DataError
from cclm.files.shipped import open_template
from cclm.report.thumbnails import thumbnail
from cclm.retrieve.answer import SearchBox
from cclm.rows.guard import optional_library

TEMPLATE = Path(__file__).with_name("search_page.html.j2")
INSTALL = 'pip install "cclm-pretraining[serve]"'
SIZES: Mapping[str, int] = {"small": 240, "large": 1024}
"""Pixels of an image's longer side."""
IMAGES_REMEMBERED = 500
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.IGNORECASE)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src {style}; script-src {script}; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def make_app(box: SearchBox, host: str = "127.0.0.1") -> Any:
    """Return the page as an ASGI application (Starlette); `host`: the address that it will be bound to.

    Raises:
        MissingDependencyError: starlette is not installed.
    """
    web = optional_library("starlette.applications", "it serves the search page", "starlette", INSTALL)
    routing = optional_library("starlette.routing", "it serves the search page", "starlette", INSTALL)
    replies = optional_library("starlette.responses", "it serves the search page", "starlette", INSTALL)
    template = open_template(TEMPLATE, html=True)
    policy = POLICY.format(style=_hash_of("style"), script=_hash_of("script"))

    def show(request: Any) -> Any:
        answer = box.answer(request.query_params.get("q"))
        page = template.render(answer=answer, box=box)
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
        return replies.HTMLResponse(page, status_code=400 if answer.problem else 200, headers=headers)

    @lru_cache(maxsize=IMAGES_REMEMBERED)
    def small(number: int, size: str) -> bytes:
        return thumbnail(box.image(number), SIZES[size])

    def image(request: Any) -> Any:
        named, size = request.path_params["number"], request.path_params.get("size", "small")
        number = int(named) if re.fullmatch(r"\d{1,18}", named, re.ASCII) else -1
        if number not in box.numbers or size not in SIZES:
            return replies.PlainTextResponse("No such image in the embedded set.", status_code=404)
        try:
            content = small(number, size)
        except DataError as error:
            return replies.PlainTextResponse(f"{error}", status_code=410)
        # The address names the set (box.version), so it may be kept.
        return replies.Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    routes = [
        routing.Route("/", show),
        routing.Route("/favicon.ico", lambda request: replies.Response(status_code=204)),  # asked for beside an image
        routing.Route("/image/{number}", image),
        routing.Route("/image/{number}/{size}", image),
    ]
    return _Guard(web.Starlette(routes=routes), replies.PlainTextResponse, local_names(host))


def _hash_of(element: str) -> str:
    """Return what allows the template's own style or script, and no other: nothing in it differs from page to page."""
    text = TEMPLATE.read_text(encoding="utf-8").partition(f"<{element}>")[2].partition(f"</{element}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address or name."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def local_names(host: str) -> frozenset[str] | None:
    """Return what a request may name as its host; None: anything, because other machines are meant to come."""
    if not is_loopback(host):
        return None
    return frozenset((*LOCAL_NAMES, f"[{host}]" if ":" in host else host))


class _Guard:
    """ASGI: refuse requests for another host, and add headers to every reply."""

    def __init__(self, app: Any, refusal: Callable[..., Any], names: frozenset[str] | None) -> None:
        self.app, self.refusal, self.names = app, refusal, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        given = next((value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"), "")
        host = HOST.fullmatch(given)
        if scope["type"] == "http" and self.names is not None and (not host or host[1].lower() not in self.names):
            words = f"Open this page as http://{LOCAL_NAMES[0]}:PORT/: it is served to this machine alone."
            await self.refusal(words, status_code=421)(scope, receive, send_on)
            return
        await self.app(scope, receive, send_on)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0: any that is free (ConfigError: no such address, or the port is taken)."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            where="--host, --port",
            expected="an address of this machine and a free port",
            got=f"{host}:{port}: {getattr(error, 'strerror', None) or error}",
            do="Give another --port (0: any that is free), or end what listens there.",
        ) from error


def address_of(listening: socket.socket) -> str:
    """Return where a browser finds it."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve(app: Any, listening: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM; those that have begun are finished, for five seconds at most
    (MissingDependencyError: uvicorn is not installed).
    """
    uvicorn = optional_library("uvicorn", "it serves the search page", "uvicorn", INSTALL)
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(settings)
    with _asking_to_stop(server, (signal.SIGINT, signal.SIGTERM)):
        server.run(sockets=[listening])


@contextmanager
def _asking_to_stop(server: Any, numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Let signals end the server, and nothing else: uvicorn listens to them, and raises them once more at its end."""

    def ask(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
