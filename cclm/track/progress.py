"""How far a run is: a bar with ETA on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

QUIET_S = 20.0
"""Seconds between two lines in a log."""


class Progress:
    """Follows a loop over the steps `start` … `total` - 1, as a context manager: a bar on a terminal, elsewhere a line
    at the first step, every `every_s` seconds and at the end. A disabled one (ranks other than 0) says nothing."""

    def __init__(
        self,
        total: int,
        start: int,
        description: str,
        *,
        enabled: bool = True,
        every_s: float = QUIET_S,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.start, self.description = total, start, description
        self.enabled, self.every_s = enabled, every_s
        self._console = console if console is not None else Console()
        self._clock = clock
        self._opened_at = clock()
        self._first: tuple[int, float] | None = None
        self._said_at: float | None = None
        self._bar: RichProgress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Progress:
        if self.enabled and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = make_bar(self._console)
            self._task = self._bar.add_task(self.description, total=self.total, completed=self.start, facts="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, step: int, *, loss: float | None = None, samples_per_s: float | None = None) -> None:
        """Say that `step` is done; `loss` and `samples_per_s` may be left out when they were not measured."""
        if not self.enabled:
            return
        now, done = self._clock(), step + 1
        if self._first is None:
            self._first = (done, now)
        facts = f"ETA {spell_duration(self._seconds_left(done, now))}"
        facts = facts if samples_per_s is None else f"{samples_per_s:.1f} samples/s  {facts}"
        facts = facts if loss is None else f"loss {loss:.3f}  {facts}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, facts=facts)
        elif self._said_at is None or done >= self.total or now - self._said_at >= self.every_s:
            share = f"{100 * done / self.total:.0f} %"
            self._console.out(f"{self.description}  {done}/{self.total}  {share}  {facts}", highlight=False)
            self._said_at = now

    def _seconds_left(self, done: int, now: float) -> float:
        """The first step is slow (files open, allocators grow), so speed is measured from its end on."""
        assert self._first is not None
        first_done, first_at = self._first
        if done > first_done:
            return (now - first_at) / (done - first_done) * (self.total - done)
        return (now - self._opened_at) / max(done - self.start, 1) * (self.total - done)


def stage(title: str, explanation: str, *, console: Console | None = None) -> None:
    """Write one line that says what begins now and why."""
    line = Text.assemble(("▶ ", "bold cyan"), (title, "bold"), f"  {explanation}")
    (console if console is not None else Console()).print(line, soft_wrap=True)


def spell_duration(seconds: float) -> str:
    """Return `h:mm:ss`, or `m:ss` below an hour."""
    whole = max(round(seconds), 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def make_bar(console: Console) -> RichProgress:
    """Make a bar; its tasks have a field `facts`, the words at its end."""
    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[facts]}"),
        console=console,
        refresh_per_second=4,
    )
