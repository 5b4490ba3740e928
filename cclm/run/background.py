"""A process beside a rank that puts its share of a checkpoint on disk while the rank trains. No torch.

    rank ── copies its share into memory of both (a memfd) ─┐
         ── calls ──► writer: writes, hashes, syncs ────────┴─► answers; the rank looks when it likes

The writer is a program of its own, never a fork: a rank has threads of torch, gloo and CUDA. It dies with its rank at
once, however that ends, and hears none of the signals that ask a rank to save and end. What it was writing lies in
memory of the rank, too: if it dies alone, another one begins that call anew.
"""

from __future__ import annotations

import hashlib
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]  # public, but not in typeshed
from pathlib import Path
from typing import Any

from cclm.errors import Cause, CclmError
from cclm.files.atomic import sync
from cclm.run.causes import retried
from cclm.run.checkpoints import FileRecord, record_file
from cclm.run.signals import STOP_SIGNALS, TRACEBACK_SIGNAL, die_with_parent

STARTS = 3
"""Of writers for one call, before it fails."""
PIECE_BYTES = 1 << 24
"""Written and hashed at once."""


def _write_copy(descriptor: int, size_bytes: int, path: Path) -> FileRecord:
    digest, memory = hashlib.sha256(), mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ)
    with memory, memoryview(memory) as whole, path.open("wb") as file:
        for start in range(0, size_bytes, PIECE_BYTES):
            with whole[start : start + PIECE_BYTES] as piece:
                digest.update(piece)
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(size_bytes=size_bytes, sha256=digest.hexdigest())


def write_files(
    descriptor: int, size_bytes: int, folder: Path, name: str, others: Sequence[str] = ()
) -> dict[str, FileRecord]:
    """Write `name` from memory, durably, and sync `others`, which are there already; return the records of all. A fault
    that passes is met by writing again from the start. The hash of `name` is that of the memory, not of what the disk
    gives back: a start finds out whether they are the same."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    records = {name: retried(partial(_write_copy, descriptor, size_bytes, folder / name))}
    for other in others:
        retried(partial(sync, folder / other))
        records[other] = record_file(folder / other)
    return records


class Writer:
    """The process, seen by its rank. It is started by the first call, and makes one call at a time.

    Use it in the thread in which the rank lives. `descriptors` are open in the process, too, under the same numbers.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None
        self._call: Callable[[], Any] | None = None
        self._answer: Any = None
        self._starts = 0

    def submit(self, call: Callable[[], Any]) -> None:
        """Have a call made that pickles: of a function whose module needs no torch. The one before is over."""
        self._call, self._answer, self._starts = call, None, 0
        self._send()

    def is_ready(self) -> bool:
        """Return whether the call is over, well or not."""
        if self._answer is None and self._link is not None and self._link.poll():
            self._receive()
        return self._answer is not None

    def result(self) -> Any:
        """Wait for the end of the call and return what it returned. Raise what it raised, or CclmError if the process
        died again and again."""
        while not self.is_ready():
            assert self._link is not None, "a result needs a call"
            self._link.poll(None)
        _, value = self._answer
        if isinstance(value, Exception):
            raise value
        return value

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None and self._link is not None:
            self._process.kill()
            self._process.wait()
            self._link.close()
        self._process = self._link = None

    def _send(self) -> None:
        if self._process is None:
            self._start()
        assert self._link is not None, "it was started"
        try:
            self._link.send(self._call)
        except OSError:  # it has died since its last call
            self._begin_anew()

    def _receive(self) -> None:
        assert self._link is not None, "it was started"
        try:
            self._answer = self._link.recv()
        except (EOFError, OSError):
            self._begin_anew()

    def _begin_anew(self) -> None:
        assert self._process is not None, "it was started"
        code = self._process.wait()
        self.close()
        if self._starts < STARTS:
            try:
                self._send()
            except OSError as error:  # no process can be started now
                self._answer = False, error
            return
        self._answer = (
            False,
            CclmError(
                where="the process that writes checkpoints",
                expected="one that lives until they are written",
                got=f"{STARTS} that ended with exit code {code}",
                do="Read its last words, and the kernel's (out of memory?), or set checkpoint.background to false.",
                cause=Cause.TRANSIENT if code < 0 else Cause.EXIT,  # as a data worker that is killed
            ),
        )

    def _start(self) -> None:
        self._starts += 1
        self._link, theirs = multiprocessing.Pipe()
        begin = f"import sys; sys.path[:] = {sys.path}; from cclm.run.background import main; main(sys.argv[1:])"
        with theirs:
            self._process = subprocess.Popen(  # the modules that this process finds, in the same places
                [sys.executable, "-c", begin, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(), *self._descriptors),
                stdin=subprocess.DEVNULL,
            )


def serve(link: Connection) -> None:
    """Make the calls that come, until nobody is there to send any."""
    while True:
        try:
            call = link.recv()
        except (EOFError, OSError):
            return
        try:
            answer = True, call()
        except Exception as error:  # noqa: BLE001 - it is raised in the rank
            answer = False, ExceptionWithTraceback(error, error.__traceback__)
        link.send(answer)


def main(arguments: Sequence[str]) -> None:
    """Serve the rank that has started this process: its link's descriptor and its number are the arguments."""
    for number in (*STOP_SIGNALS, TRACEBACK_SIGNAL):
        signal.signal(number, signal.SIG_IGN)
    descriptor, parent = map(int, arguments)
    die_with_parent(parent)
    with Connection(descriptor) as link:
        serve(link)
