"""Memory that runs out before the first step is done, told in a sentence.

The kernel would kill this rank, or one of its workers, or a process of somebody else, without a word. Before the first
step is done nothing is lost by ending first; later the kernel decides, which knows more.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cclm.errors import Cause, CclmError
from cclm.run.ending import end_with
from cclm.run.machine import available_memory_bytes

LOOK_S = 0.05
"""Memory grows by gigabytes a second when a step is too large."""
SHARE, LEAST, MOST = 0.03, 1 << 28, 1 << 32
"""What must be left: a share of what there was, at least and at most so many bytes. With less the kernel is about to
kill, and everything is slow."""


class MemoryGuard:
    """Looks at the machine's memory until the first step is done."""

    def __init__(self, run_folder: Path, rank: int, advice: str, *, look: Callable[[], int] = available_memory_bytes):
        self._run_folder, self._rank, self._advice, self._look = run_folder, rank, advice, look
        self._passed = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[MemoryGuard]:
        """Look until `passed`, or to the end of the `with` block."""
        before = self._look()
        least = min(MOST, max(LEAST, int(SHARE * before)))
        if before > least:
            threading.Thread(target=self._watch, args=(least,), name="memory", daemon=True).start()
        try:
            yield self
        finally:
            self.passed()

    def passed(self) -> None:
        """Say that a step is done: memory sufficed."""
        self._passed.set()

    def _watch(self, least: int) -> None:
        while not self._passed.wait(LOOK_S):
            if (left := self._look()) < least:
                os._exit(end_with(self._error(left), self._run_folder, self._rank))

    def _error(self, left: int) -> CclmError:
        own, workers = resident_bytes(os.getpid()), sum(map(resident_bytes, children_of(os.getpid())))
        return CclmError(
            where="before the first step was done",
            expected="enough memory",
            got=f"{left / 1e9:.1f} GB left; this rank holds {own / 1e9:.1f} GB, its workers {workers / 1e9:.1f} GB",
            do=self._advice,
            cause=Cause.USER_ERROR,
        )


def resident_bytes(pid: int) -> int:
    """Return what a process holds in memory, pages that it shares included; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def children_of(pid: int) -> list[int]:
    """Return the processes that a process of this machine has started and that live."""
    try:
        texts = [path.read_text(encoding="ascii") for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in texts for child in text.split()]
