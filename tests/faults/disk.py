"""What a rank, or the process that writes its checkpoints, meets on the disk of its run. No torch.

Each operation of the process below a folder is counted as Python audits it: a file opened, a name changed or removed,
a folder made, and besides every fsync. At the chosen ones something happens: an error, a pause, or the rank's death.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

OPERATIONS = frozenset({"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"})
MET = "CCLM_FAULT_MET"
"""The variable with the file that says that something has happened."""
WAITS_S = (0.05, 0.1, 0.2)
"""Before another try, in the place of `cclm.run.causes.WAITS_S`: four tries remain four."""
KILL = -1
"""In the place of an error's number: kill -9."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What happens, and when."""

    folder: str
    """Only what lies below it counts."""
    first: int
    """The first operation that meets it, counted from 1."""
    times: int = 1
    """So many operations one after the other meet it."""
    errno: int = 0
    """An error's number; 0: none; KILL: the process named is killed."""
    pause_s: float = 0.0
    reads: bool = True
    """Whether a file that is opened to be read counts."""
    victim: int = 0
    """Which process is killed; 0: this one."""

    def meet(self, number: int, path: str) -> None:
        """Do what is due at an operation."""
        if not self.first <= number < self.first + self.times:
            return
        note()
        time.sleep(self.pause_s)
        if self.errno == KILL:
            os.kill(self.victim or os.getpid(), signal.SIGKILL)
            time.sleep(60.0)  # the writer of a killed rank is killed by the kernel
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno), path)


def note() -> None:
    """Note that something happens to this process now."""
    Path(os.environ[MET]).touch()


class _Counter:
    """Counts the operations of this process."""

    trouble: Trouble | None = None
    number = 0

    @classmethod
    def look(cls, path: object, *, writes: bool) -> None:
        trouble = cls.trouble
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if trouble is None or not text.startswith(trouble.folder) or not (writes or trouble.reads):
            return
        cls.number += 1
        trouble.meet(cls.number, text)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in OPERATIONS:
        reads = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        _Counter.look(arguments[0], writes=not reads)


def begin(trouble: Trouble) -> None:
    """Let this process meet it; another process's is forgotten."""
    if _Counter.trouble is None:
        sys.addaudithook(_audit)
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            if _Counter.trouble is not None:
                _Counter.look(Path(f"/proc/self/fd/{descriptor}").readlink(), writes=True)
            fsync(descriptor)

        os.fsync = counted
    if trouble != _Counter.trouble:
        _Counter.trouble, _Counter.number = trouble, 0


def in_rank(trouble: Trouble, who: int, rank: int) -> None:
    """A fault of rank `who`."""
    if rank == who:
        begin(trouble)


def in_writer(trouble: Trouble, who: int, rank: int, *, kills_rank: bool = False) -> None:
    """A fault of the process that writes rank `who`'s checkpoints."""
    if rank != who:
        return
    from cclm.run.background import Writer

    if kills_rank:
        trouble = Trouble(**{**vars(trouble), "victim": os.getpid()})
    submit = Writer.submit

    def troubled(writer: Writer, call: Callable[[], Any]) -> None:
        submit(writer, partial(with_trouble, trouble, call))

    Writer.submit = troubled  # type: ignore[method-assign]  # in this rank's process, for good


def with_trouble(trouble: Trouble, call: Callable[[], Any]) -> Any:
    """Make a call in a process that meets it."""
    begin(trouble)
    return call()


def with_short_waits(call: Callable[[], Any]) -> Any:
    """Make a call in a process that waits less before it tries again."""
    from cclm.run import causes

    causes.WAITS_S = WAITS_S
    return call()
