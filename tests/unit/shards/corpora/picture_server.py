"""A web server on this machine, with hosts' bad habits."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.unit.shards.corpora.tiny_files import late_iccp, picture

ROBOTS = "User-agent: *\nDisallow: /private/*.jpg$\n\nUser-agent: other\nDisallow: /\n"


class PictureServer(ThreadingHTTPServer):
    """Counts requests by path; `healthy` mends what fails for a while."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.healthy = False
        self.robots_status, self.robots_moves = 200, 0
        self.held = self.most_held = 0
        self.lock = threading.Lock()
        self.trickling, self.release, self.closing = threading.Event(), threading.Event(), threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PictureServer

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.asked[self.path] += 1
            times = server.asked[self.path]
        self._reply(self.path, times)

    def _reply(self, path: str, times: int) -> None:
        if path.startswith("/robots.txt"):
            moved = path.count("+")
            if moved < self.server.robots_moves:
                self._send(302, b"", {"Location": f"{path}+"})
            else:
                self._send(self.server.robots_status, ROBOTS.encode())
        elif path.startswith("/flaky"):
            self._send(200 if times > 1 else 503, picture())
        elif path.startswith("/down"):
            self._send(200 if self.server.healthy else 500, picture())
        elif path.startswith("/gone"):
            self._send(404, b"not here")
        elif path.startswith("/moved"):
            self._send(301, b"", {"Location": "/private/x.jpg" if "private" in path else "/ok/moved.jpg"})
        elif path.startswith("/round"):
            self._send(302, b"", {"Location": "/round"})
        elif path.startswith("/optout"):
            self._send(200, picture(), {"X-Robots-Tag": "noarchive, NoAI"})
        elif path.startswith("/page"):
            self._send(200, b"<html>")
        elif path.startswith("/cut"):
            self._cut(times)
        elif path.startswith("/held"):
            self._hold()
        elif path.startswith("/slow"):
            self._trickle(head="head" in path)
        elif path.startswith("/late_iccp"):
            self._send(200, late_iccp())
        else:
            self._send(200, picture(colour=len(path)))

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _cut(self, times: int) -> None:
        """Break the connection in the middle of the body, the first time."""
        body = picture()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if times > 1 else body[:20])
        self.close_connection = times == 1

    def _hold(self) -> None:
        """Send a picture after `release`; count how many wait for that, or have, at once."""
        server = self.server
        with server.lock:
            server.held += 1
            server.most_held = max(server.most_held, server.held)
        server.release.wait(60)
        with server.lock:
            server.held -= 1
        self._send(200, picture())

    def _trickle(self, *, head: bool) -> None:
        """Send a byte at a time, for as long as somebody listens; `healthy` sends the picture."""
        if self.server.healthy:
            return self._send(200, picture())
        if not head:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
        self.close_connection = True
        self.server.trickling.set()
        with suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: " if head else b"\xff\xd8")
            while not self.server.closing.wait(0.05):
                self.wfile.write(b"x")
        return None

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def picture_server() -> Iterator[PictureServer]:
    server = PictureServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
