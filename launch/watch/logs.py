"""Which log of a run is meant, and following it to the run's end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cclm.errors import ConfigError
from cclm.files.lines import Tail
from cclm.files.text import spans
from launch.slurm.history import HISTORY
from launch.watch.status import RunNow, look_at_one

POLL_S = 0.3
ASK_S = 10.0
"""So often Slurm is asked whether the job is over, …"""
ASK_SOON_S, EVENTFUL_S = 1.0, 10.0
"""… and so often for so long after an attempt has begun or ended."""
LATE_S = 2.0
"""What a job wrote last may reach this machine so much later than the news of its end."""


def log_of(run: RunNow, *, rank: int | None, task: int | None, say: Callable[[str], None]) -> Path:
    """Return the log that is meant: the batch script's, or a rank's where there is none; that of an array's task.
    Raise ConfigError if the run has no such log, and will have none."""
    logs = run.run_folder / "logs"
    if task is not None:
        numbers = [] if run.array_tasks is None else run.array_tasks.numbers()
        if task not in numbers:
            has = f"an array with tasks {spans(numbers)}" if numbers else "no array"
            raise ConfigError(
                where=str(run.run_folder), expected="a task of an array", got=f"--task {task} of {has}",
                do="Check the number." if numbers else "Ranks have --rank R.",
            )  # fmt: skip
        own = logs / f"task_{task}.log"
        return own if own.exists() or not (logs / f"slurm_{task}.log").exists() else logs / f"slurm_{task}.log"
    if run.array_tasks is not None:
        raise ConfigError(
            where=str(run.run_folder), expected="--task N, for an array has a log for each task", got="none",
            do=run.array_tasks.failed_in_words().capitalize() or "Choose a task.",
        )  # fmt: skip
    if rank is None and not run.is_local:
        return logs / "slurm.log"
    path = logs / f"rank_{rank or 0}.log"
    if path.exists() or (run.may_go_on and not run.is_local):
        return path
    numbers = sorted(int(item.stem.removeprefix("rank_")) for item in logs.glob("rank_*.log"))
    if not rank and numbers and run.is_local:
        say(f"rank 0 writes to the terminal of `launch run`; this is rank {numbers[0]}'s")
        return logs / f"rank_{numbers[0]}.log"
    there = f"logs of rank(s) {spans(numbers)}" if numbers else "no rank's log"
    do = "Check the number."
    if run.is_local and not rank:
        do = "Without Slurm, rank 0 writes to the terminal, or to where its launcher sends it."
    raise ConfigError(where=str(logs), expected=path.name, got=there, do=do)


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
    """Is the run over, or the task of an array? Asked often; Slurm is asked rarely, but soon after the first look and
    after the run's history has changed: an attempt that ends writes there."""

    def __init__(self, run_folder: Path, task: int | None) -> None:
        self.run_folder, self.task = run_folder, task
        self._is_over, self._next_look, self._soon_until, self._history_bytes = False, 0.0, 0.0, -1

    def __call__(self) -> bool:
        """Return whether nothing more is to be expected. A Slurm that does not answer has not said so."""
        now, path = time.monotonic(), self.run_folder / HISTORY
        size = path.stat().st_size if path.exists() else 0
        if size != self._history_bytes:
            self._history_bytes, self._soon_until, self._next_look = size, now + EVENTFUL_S, now
        if now >= self._next_look:
            run = look_at_one(self.run_folder)
            self._is_over = not (run.may_go_on if self.task is None else run.task_may_go_on(self.task))
            self._next_look = now + (ASK_SOON_S if now < self._soon_until else ASK_S)
        return self._is_over
