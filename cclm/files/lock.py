"""One run folder, one run: two launches of the same command would write the same files.

The kernel drops the lock with the process that holds it, so a killed run leaves none; the file `.lock` stays and means
nothing by itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cclm.errors import CclmError
from cclm.files.folders import make_folder

LOCK_NAME = ".lock"
HELD = "is training in"
"""Words of the refusal, by which `launch` knows that another try may succeed."""
NO_LOCKS_HERE = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})
"""What a network file system says that is mounted without locks: then there is no protection."""

LOOK_S = 0.2
"""Much longer than `holder_of` keeps the lock to look at it."""

_held: set[int] = set()
"""Open lock files of this process."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold `folder`/.lock for the length of the `with` block (rank 0 only: once per run). The folder is made.

    Raises:
        CclmError: another process holds it (names host and process), or nothing can be written there.
    """
    make_folder(folder)
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        _held.add(descriptor)
        try:
            yield
        finally:
            _held.discard(descriptor)
    finally:
        os.close(descriptor)


def holder_of(folder: Path) -> str:
    """Who holds the run's lock, in words; "" if nobody does, as far as this machine can know.

    A network file system mounted without locks shows nobody's.
    """
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _name(descriptor)
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
    finally:
        os.close(descriptor)
    return ""


def _name(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"


def _acquire(descriptor: int, folder: Path) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a run, or somebody who only looks whether there is one
            time.sleep(LOOK_S)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _name(descriptor)
        raise CclmError(
            expected="a run folder that no other run is using",
            got=f"one that {holder} {HELD}",
            do="Wait for that run, stop it, or choose another run_folder.",
            where=str(folder),
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise


def _forget_in_child() -> None:
    """A forked child (a loader's worker) may outlive a killed run for seconds; it must not hold the run's lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
