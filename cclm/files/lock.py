"""One run folder, one run: two launches of the same command would write the same files.

The kernel drops the lock with the process that holds it, so a killed run leaves none; the file `.lock` stays and means
nothing by itself. Where the file system has no locks, a lease stands in for it: a file that only one process can make,
and that its holder keeps fresh. A holder that died on this machine is known by its process; one elsewhere by its age.
Ages are differences between two times of the file server, so the machines' clocks don't matter.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from cclm.errors import Cause, CclmError
from cclm.files.atomic import make_folder

LOCK_NAME = ".lock"
NO_LOCKS_HERE = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})
"""What a network file system says that is mounted without locks."""
LOOK_S = 0.2
"""Longer than `holder_of` keeps the lock to look at it, unless its process is held up."""
NUM_LOOKS = 150
"""So often at most one waits for those who only look."""
BEAT_S = 15.0
LOST_S = 90.0
"""A lease that has not been touched for so long belongs to a machine that is gone: several beats may be late."""
NUM_TRIES = 3
"""Two processes may find the same dead holder; who loses looks again."""
_held: set[int] = set()
"""Open lock files of this process."""


@contextmanager
def run_lock(folder: Path, name: str = LOCK_NAME) -> Iterator[None]:
    """Hold `folder`/`name` for the length of the `with` block (rank 0 only: once per run). The folder is made.
    CclmError: another process holds it (names host and process; FOLDER_LOCKED), or nothing can be written there."""
    make_folder(folder)
    with ExitStack() as stack:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
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
    """Lock an open file; False where the file system has no locks; raise BlockingIOError if a run has it, LeasedError
    if somebody looks at it for too long."""
    try:
        for look in range(NUM_LOOKS):
            with suppress(BlockingIOError):  # a run, or somebody who only looks whether there is one
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            if look:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # refused by a run alone
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            time.sleep(LOOK_S)
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
        return False
    raise LeasedError(f"somebody who has looked at its lock for {NUM_LOOKS * LOOK_S:.0f} s")


def _forget_in_child() -> None:
    """A forked child (a loader's worker) may outlive a killed run for seconds; it must not hold the run's lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class LeasedError(Exception):
    """Another process holds the lease; as a text it says who."""


@contextmanager
def lease(path: Path) -> Iterator[None]:
    """Hold the lease `path` for the length of the `with` block; raise LeasedError if a living process has it."""
    pid = os.getpid()
    mine = {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": _started(pid)}
    mine["token"] = secrets.token_hex(8)
    _take(path, mine)
    over = threading.Event()
    beat = threading.Thread(target=_keep_fresh, args=(path, mine, over), daemon=True, name="lease")
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        if _read(path).get("token") == mine["token"]:
            path.unlink(missing_ok=True)


def lease_holder(path: Path) -> str:
    """Return who holds the lease, in words; "" if nobody does."""
    owner = _read(path)
    return "" if not path.exists() or _is_lost(path, owner) else _owner_name(owner)


def _take(path: Path, mine: dict[str, Any]) -> None:
    for _ in range(NUM_TRIES):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            owner = _read(path)
            if not _is_lost(path, owner):
                raise LeasedError(_owner_name(owner)) from None
            _remove_lost(path, owner)
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(mine, file)
        return
    raise LeasedError(_owner_name(_read(path)))


def _remove_lost(path: Path, owner: dict[str, Any]) -> None:
    """Take the dead holder's file away; if a new holder's was caught instead, put it back."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside).get("token") != owner.get("token"):
        os.link(aside, path)
    aside.unlink()


def _is_lost(path: Path, owner: dict[str, Any]) -> bool:
    try:
        if owner.get("machine") == _machine():
            return _started(int(owner["pid"])) != str(owner["started"])
        probe = path.with_name(f"{path.name}.now.{secrets.token_hex(8)}")
        probe.touch()
        try:
            return probe.stat().st_mtime - path.stat().st_mtime > LOST_S
        finally:
            probe.unlink()
    except FileNotFoundError:
        return True


def _keep_fresh(path: Path, mine: dict[str, Any], over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        try:
            if _read(path).get("token") == mine["token"]:
                os.utime(path)
        except OSError:
            continue  # the file server does not answer: the next beat tries again


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks: a later one with the same number differs. "": there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _machine() -> str:
    """This boot of this machine, and the namespace in which numbers of processes mean something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _read(path: Path) -> dict[str, Any]:
    """What the holder wrote; nothing if it has not yet, or is gone."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _owner_name(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}" if owner else "another process"
