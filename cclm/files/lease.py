"""A lock for file systems without locks: a file that only one process can make, and that its holder keeps fresh.

A holder that died on this machine is known by its process; one elsewhere by its age: it touches the file every few
seconds. Ages are differences between two times of the file server, so the machines' clocks don't matter.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BEAT_S = 15.0
LOST_S = 90.0
"""A lease that has not been touched for so long belongs to a machine that is gone: several beats may be late."""
NUM_TRIES = 3
"""Two processes may find the same dead holder; who loses looks again."""


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
    return "" if not path.exists() or _is_lost(path, owner) else _name(owner)


def _take(path: Path, mine: dict[str, Any]) -> None:
    for _ in range(NUM_TRIES):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            owner = _read(path)
            if not _is_lost(path, owner):
                raise LeasedError(_name(owner)) from None
            _remove_lost(path, owner)
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(mine, file)
        return
    raise LeasedError(_name(_read(path)))


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


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}" if owner else "another process"
