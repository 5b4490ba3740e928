"""One run folder, one run: two launches of the same command would write the same files.

The kernel drops the lock with the process that holds it, so a killed run leaves none; the file `.lock` stays and means
nothing by itself. Where the file system has no locks, a lease stands in for it (`cclm/files/lease.py`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cclm.errors import Cause, CclmError
from cclm.files.atomic import make_folder
from cclm.files.lease import LeasedError, lease, lease_holder

LOCK_NAME = ".lock"
NO_LOCKS_HERE = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})
"""What a network file system says that is mounted without locks."""
LOOK_S = 0.2
"""Much longer than `holder_of` keeps the lock to look at it."""
_held: set[int] = set()
"""Open lock files of this process."""


@contextmanager
def run_lock(folder: Path, name: str = LOCK_NAME) -> Iterator[None]:
    """Hold `folder`/`name` for the length of the `with` block (rank 0 only: once per run). The folder is made.

    Raises:
        CclmError: another process holds it (names host and process; FOLDER_LOCKED), or nothing can be written there.
    """
    make_folder(folder)
    with ExitStack() as stack:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        stack.callback(os.close, descriptor)
        try:
            if not _acquire(descriptor):
                stack.enter_context(lease(folder / f"{name}.lease"))
        except (BlockingIOError, LeasedError) as error:
            holder = str(error) if isinstance(error, LeasedError) else _name(descriptor)
            raise CclmError(
                expected="a run folder that no other run is using",
                got=f"one that {holder} is using",
                do="Wait for that run, stop it, or choose another run folder.",
                where=str(folder),
                cause=Cause.FOLDER_LOCKED,
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        _held.add(descriptor)
        stack.callback(_held.discard, descriptor)
        yield


@contextmanager
def locked_folder(folder: Path, busy: CclmError, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a folder itself for the length of the `with` block; raise `busy` if another process has one.

    `shared`: others may hold shared locks, too. Where the file system cannot lock folders, nothing can be known.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        except OSError:  # no locks, or (EBADF: NFS) none on folders
            pass
        yield
    finally:
        os.close(descriptor)


def holder_of(folder: Path, name: str = LOCK_NAME) -> str:
    """Return who holds the run's lock, in words; "" if nobody does, as far as this machine can know."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _name(descriptor)
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
        return lease_holder(folder / f"{name}.lease")
    finally:
        os.close(descriptor)
    return ""


def _name(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"


def _acquire(descriptor: int) -> bool:
    """Lock an open file; False where the file system has no locks; raise BlockingIOError if another process has it."""
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a run, or somebody who only looks whether there is one
            time.sleep(LOOK_S)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
        return False
    return True


def _forget_in_child() -> None:
    """A forked child (a loader's worker) may outlive a killed run for seconds; it must not hold the run's lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
