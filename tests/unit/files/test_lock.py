from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cclm.errors import CclmError
from cclm.files.lock import holder_of, run_lock

HOLD = """
import os, sys, time
from pathlib import Path
from cclm.files.lock import run_lock
with run_lock(Path(sys.argv[1])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # by the worker itself: it is really there
    time.sleep(60)
    os._exit(0)
"""


@contextmanager
def another_run(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lock and has forked a worker; yields both."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        try:
            yield process, worker
        finally:
            os.kill(worker, signal.SIGKILL)
            process.kill()


def test_a_second_run_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with (
        another_run(tmp_path) as (process, _),
        pytest.raises(CclmError, match=rf"one that process {process.pid} on {socket.gethostname()} is training in"),
        run_lock(tmp_path),
    ):
        pass


def test_a_killed_run_leaves_no_lock_even_while_its_worker_lives(tmp_path: Path) -> None:
    with another_run(tmp_path) as (process, worker):
        process.kill()
        process.wait()
        os.kill(worker, 0)  # it lives
        with run_lock(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_the_lock_ends_with_its_block_and_the_folder_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    for _ in range(2):
        with run_lock(folder), pytest.raises(CclmError, match="choose another run_folder"), run_lock(folder):
            pass


@pytest.mark.parametrize(("code", "is_tolerated"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_no_reason_to_stop(
    code: int, is_tolerated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(code, "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
    if is_tolerated:
        with run_lock(tmp_path):
            pass
    else:
        with pytest.raises(OSError, match="refused"), run_lock(tmp_path):
            pass


def test_others_may_look_who_holds_it(tmp_path: Path) -> None:
    assert holder_of(tmp_path) == ""
    with another_run(tmp_path) as (process, _):
        assert holder_of(tmp_path) == f"process {process.pid} on {socket.gethostname()}"
    assert holder_of(tmp_path) == "", "the file stays and means nothing by itself"


def test_a_look_does_not_keep_a_run_from_beginning(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.05, looking.close)
        timer.start()
        with run_lock(tmp_path):
            assert holder_of(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_file_system_without_locks_shows_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, "no locks here")

    (tmp_path / ".lock").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    code = errno.ENOLCK
    assert holder_of(tmp_path) == ""
    code = errno.EIO
    with pytest.raises(OSError, match="no locks here"):
        holder_of(tmp_path)
