"""A bar with throughput and ETA on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from cclm.track.progress import make_bar, spell_duration

SECONDS_BETWEEN_LINES = 10.0


class WorkProgress:
    """Counts work that is done; a context manager.

    Args:
        label: what is being done.
        total: how much there is; None: not known, so there is throughput but no ETA.
        unit: of what, in the plural.
        console: where to; a console that is no terminal gets a line every ten seconds.
    """

    def __init__(self, label: str, total: int | None, unit: str, console: Console) -> None:
        self._label, self._total, self._unit, self._console = label, total, unit, console
        self._done, self._skipped, self._started = 0, 0, time.monotonic()
        self._last_line = self._started
        self._facts, self._said = "done before", -1
        self._bar: Progress | None = None

    def __enter__(self) -> WorkProgress:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = make_bar(self._console)
            self._task = self._bar.add_task(escape(self._label), total=self._total, facts="")
            self._bar.start()
        return self

    def expect(self, total: int) -> None:
        """Say how much there is, now that it is known better."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def advance(self, amount: int, *, note: str = "", done_before: bool = False) -> None:
        """Add finished work; what an earlier run did (`done_before`) does not count for the throughput."""
        self._done += amount
        self._skipped += amount if done_before else 0
        now = time.monotonic()
        rate = (self._done - self._skipped) / max(now - self._started, 1e-3)
        facts = "done before"
        if rate > 0:
            facts = f"{rate:,.0f} {self._unit}/s"
            if self._total is not None:
                facts += f"  ETA {spell_duration(max(self._total - self._done, 0) / rate)}"
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, facts=facts, description=escape(note or self._label))
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._say(facts)
        self._facts = facts

    def _say(self, facts: str) -> None:
        self._said = self._done
        of = "" if self._total is None else f"/{self._total:,}"
        self._console.print(f"{self._label}: {self._done:,}{of}  {facts}", highlight=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._said != self._done:
            self._say(self._facts)
