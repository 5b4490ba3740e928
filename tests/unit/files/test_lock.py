from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from cclm.errors import Cause, CclmError
from cclm.files import lock
from cclm.files.lines import append_line
from cclm.files.lock import holder_of, run_lock
from cclm.shardfile.cache import file_lock

HOLD = """
import os, sys, time
from pathlib import Path
from cclm.files.lock import run_lock
with run_lock(Path(sys.argv[1])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # by the worker itself: it is really there
    time.sleep(600)
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
        pytest.raises(CclmError) as caught,
        run_lock(tmp_path),
    ):
        pass
    assert caught.value.cause is Cause.FOLDER_LOCKED
    assert f"process {process.pid} on {socket.gethostname()}" in caught.value.got


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
        with run_lock(folder), pytest.raises(CclmError) as caught, run_lock(folder):
            pass
        assert caught.value.cause is Cause.FOLDER_LOCKED


def test_a_group_may_go_on_with_what_one_of_it_began(tmp_path: Path) -> None:
    """Where the umask lets it: files of a run folder, and locks of a cache, that many write."""
    before = os.umask(0o002)
    try:
        with run_lock(tmp_path), lock.lease(tmp_path / "lease"), file_lock(tmp_path / "shard"):
            append_line(tmp_path / "log.jsonl", {})
            modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert len(modes) == 4 and set(modes.values()) == {0o664}, modes


def refuse_locks(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: int) -> None:
        raise OSError(code, "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_refusal_has_its_cause(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(CclmError) as caught, run_lock(tmp_path):
        pass
    assert caught.value.cause is Cause.FOLDER_LOCKED


def test_locks_of_another_name_are_others(tmp_path: Path) -> None:
    with run_lock(tmp_path), run_lock(tmp_path, ".launch.lock"):
        assert holder_of(tmp_path, ".launch.lock") != ""
    assert holder_of(tmp_path, ".launch.lock") == ""


def test_another_fault_of_the_lock_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="refused"), run_lock(tmp_path):
        pass
    with pytest.raises(OSError, match="refused"):
        holder_of(tmp_path)


@pytest.fixture
def no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a file system without locks."""
    refuse_locks(monkeypatch, errno.ENOLCK)
    return tmp_path


def test_without_locks_a_second_run_is_refused(no_locks: Path) -> None:
    with run_lock(no_locks):
        assert holder_of(no_locks) == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(CclmError) as caught, run_lock(no_locks):
            pass
        assert caught.value.cause is Cause.FOLDER_LOCKED
    assert holder_of(no_locks) == ""
    with run_lock(no_locks):
        pass
    assert sorted(path.name for path in no_locks.iterdir()) == [".lock"]


def lease_of(folder: Path, **changes: object) -> Path:
    """A lease that somebody left; by default this process."""
    with run_lock(folder):
        content = json.loads((folder / ".lock.lease").read_text())
    (folder / ".lock.lease").write_text(json.dumps({**content, **changes}))
    return folder / ".lock.lease"


def test_without_locks_a_killed_run_leaves_none(no_locks: Path) -> None:
    lease_of(no_locks, pid=2**22 + 1)
    assert holder_of(no_locks) == ""
    with run_lock(no_locks):
        pass
    lease_of(no_locks, started="1")  # another process has its number now
    with run_lock(no_locks):
        pass


def test_without_locks_a_run_elsewhere_counts_until_it_is_silent(no_locks: Path) -> None:
    path = lease_of(no_locks, machine="another", host="n7", pid=3, token="t")
    assert holder_of(no_locks) == "process 3 on n7"
    with pytest.raises(CclmError), run_lock(no_locks):
        pass
    os.utime(path, (time.time() - 2 * lock.LOST_S,) * 2)
    with run_lock(no_locks):
        assert holder_of(no_locks) == f"process {os.getpid()} on {socket.gethostname()}"


def test_without_locks_the_holder_keeps_its_lease_fresh(no_locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    with run_lock(no_locks):
        os.utime(no_locks / ".lock.lease", (1.0, 1.0))
        end = time.monotonic() + 60
        while (no_locks / ".lock.lease").stat().st_mtime == 1.0:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_others_may_look_who_holds_it(tmp_path: Path) -> None:
    assert holder_of(tmp_path) == ""
    with another_run(tmp_path) as (process, _):
        assert holder_of(tmp_path) == f"process {process.pid} on {socket.gethostname()}"
    assert holder_of(tmp_path) == "", "the file stays and means nothing by itself"


def test_a_look_does_not_keep_a_run_from_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor several looks after each other, or one by a process that is held up in the middle of it."""
    (tmp_path / ".lock").touch()
    looks = [(tmp_path / ".lock").open() for _ in range(3)]
    for look in looks:
        fcntl.flock(look, fcntl.LOCK_SH)
    monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=lambda _: looks.pop().close()))
    with run_lock(tmp_path):
        assert not looks and holder_of(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_look_without_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that stands still, or of a machine that is gone."""
    monkeypatch.setattr(lock, "NUM_LOOKS", 2)
    (tmp_path / ".lock").write_text("process 1 on an earlier host")
    with (tmp_path / ".lock").open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        with pytest.raises(CclmError) as caught, run_lock(tmp_path):
            pass
    assert caught.value.cause is Cause.FOLDER_LOCKED and "somebody who has looked at its lock" in caught.value.got
