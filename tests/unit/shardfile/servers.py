"""A real HTTP server of a folder, with faults to order, and a real S3 server (moto)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


class FolderServer:
    """Serves a folder; `faults[name]` is a list of what to do with the next requests of a file.

    "503" or another status: refuse; "cut": half of the bytes, then close; "other": other bytes of the same length;
    "slow": wait for `release` after half of the bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.faults: dict[str, list[str]] = {}
        self.requests: Counter[str] = Counter()
        self.release, self.is_waiting = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self, directory=str(folder)))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(images: Path) -> Iterator[FolderServer]:
    """Of the folder with the images' set."""
    server = FolderServer(images.parent)
    yield server
    server.close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, owner: FolderServer, *arguments: Any, **options: Any) -> None:
        self.owner = owner
        super().__init__(*arguments, **options)

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.owner.requests[name] += 1
        faults = self.owner.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        if not fault:
            super().do_GET()
            return
        if fault.isdigit():
            self.send_error(int(fault))
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        half = len(data) // 2
        if fault == "other":
            data = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:half])
        if fault == "slow":
            self.wfile.flush()
            self.owner.is_waiting.set()
            self.owner.release.wait(600)
        if fault != "cut":
            self.wfile.write(data[half:])
        else:
            self.close_connection = True


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 server in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
