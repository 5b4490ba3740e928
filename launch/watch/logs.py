"""Logs that grow: the last lines of a file, and what is added to it, over rotation, truncation and a late beginning."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cclm.errors import ConfigError
from launch.slurm.history import HISTORY
from launch.watch.ranks import spans
from launch.watch.status import RunNow, look_at_one

BLOCK_BYTES = 2**16
POLL_S = 0.3
ASK_S = 10.0
"""So often Slurm is asked whether the job is over, …"""
ASK_SOON_S, EVENTFUL_S = 1.0, 10.0
"""… and so often for so long after a life has begun or ended."""
LATE_S = 2.0
"""What a job wrote last may reach this machine so much later than the news of its end."""


def log_of(run: RunNow, *, rank: int | None, task: int | None) -> Path:
    """The log that is meant: the batch script's, or rank 0's where there is none; a rank's; an element's.

    Raises:
        ConfigError: the run has no such log, and will have none.
    """
    logs = run.run_folder / "logs"
    if task is not None:
        _refuse_task(run, task)
        own = logs / f"task_{task}.log"
        return own if own.exists() or not (logs / f"slurm_{task}.log").exists() else logs / f"slurm_{task}.log"
    if run.elements is not None:
        raise ConfigError(
            where=str(run.run_folder), expected="--task N, for an array has a log for each element", got="none",
            do=run.elements.failed_in_words().capitalize() or "Choose an element.",
        )  # fmt: skip
    if rank is None and run.kind != "local":
        return logs / "slurm.log"
    path = logs / f"rank_{rank or 0}.log"
    if not path.exists() and not run.may_go_on:
        there = ", ".join(sorted(item.name for item in logs.glob("rank_*.log"))) or "none"
        terminal = "Without Slurm, rank 0 writes to the terminal of `launch run`, which may have another --run-folder."
        raise ConfigError(
            where=str(logs), expected=path.name, got=there, do=terminal if run.kind == "local" else "Check the number."
        )
    return path


def _refuse_task(run: RunNow, task: int) -> None:
    numbers = [] if run.elements is None else run.elements.numbers()
    if task not in numbers:
        has = f"an array with elements {spans(numbers)}" if numbers else "no array"
        raise ConfigError(where=str(run.run_folder), expected="an element of an array", got=f"--task {task} of {has}",
            do="Check the number." if numbers else "Ranks have --rank R.",
        )  # fmt: skip


def last_lines(path: Path, count: int) -> tuple[bytes, int]:
    """Return the last `count` lines of a file, and the place behind them; however long the file is."""
    with path.open("rb") as file:
        size = end = file.seek(0, os.SEEK_END)
        text = b""
        while end > 0 and text.count(b"\n", 0, -1) < count:
            start = max(end - BLOCK_BYTES, 0)
            file.seek(start)
            text, end = file.read(end - start) + text, start
    return b"".join(text.splitlines(keepends=True)[-count:] if count else []), size


class Tail:
    """The end of a file, of which each byte is read once."""

    def __init__(self, path: Path, num_lines: int) -> None:
        self.path = path
        self._inode, self._position = 0, 0
        self._begin = b""
        if path.exists():
            self._begin, self._position = last_lines(path, num_lines)
            self._inode = path.stat().st_ino

    def news(self) -> bytes | None:
        """What has been added since the last call; None: there is no file. A new or cut file is read from its start."""
        begin, self._begin = self._begin, b""
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._inode or stat.st_size < self._position:
                    self._inode, self._position = stat.st_ino, 0
                file.seek(self._position)
                added = file.read(BLOCK_BYTES)
        except FileNotFoundError:
            return None
        self._position += len(added)
        return begin + added


def follow(tail: Tail, *, is_over: Callable[[], bool], say: Callable[[str], None]) -> Iterator[bytes]:
    """Yield what is added to a file until `is_over` and everything has been read."""
    over_at: float | None = None
    has_said = False
    while over_at is None or time.monotonic() - over_at < LATE_S:
        news = tail.news()
        if news:
            over_at = None
            yield news
            continue
        if news is None and not has_said:
            say(f"{tail.path} is not there yet")
            has_said = True
        if over_at is None and is_over():
            over_at = time.monotonic()
        time.sleep(POLL_S)


class EndOfRun:
    """Is the run over, or the element of an array? Asked often; Slurm is asked rarely, but soon after the run's history
    has changed: a life that ends writes there."""

    def __init__(self, run_folder: Path, task: int | None) -> None:
        self.run_folder, self.task = run_folder, task
        self._next_look, self._is_over = 0.0, False
        self._history = self._size()
        self._changed = -EVENTFUL_S

    def __call__(self) -> bool:
        """Whether nothing more is to be expected. A Slurm that does not answer has not said so."""
        now = time.monotonic()
        if (size := self._size()) != self._history:
            self._history, self._changed, self._next_look = size, now, now
        if now >= self._next_look:
            run = look_at_one(self.run_folder)
            self._is_over = not (run.may_go_on if self.task is None else run.element_may_go_on(self.task))
            self._next_look = now + (ASK_SOON_S if now - self._changed < EVENTFUL_S else ASK_S)
        return self._is_over

    def _size(self) -> int:
        path = self.run_folder / HISTORY
        return path.stat().st_size if path.exists() else 0
