"""How far the reading of a corpus is, seen from the runs that appear: by whatever process or machine."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shards.chunks import RunName, list_runs, run_facts
from shards.progress import WorkProgress

SECONDS_BETWEEN_LOOKS = 1.0


@dataclass
class RunTotals:
    """Sums over runs."""

    drafts: int = 0
    """What the corpus yielded."""
    units: int = 0
    """What the counts add up in."""
    bad: int = 0
    """Units that the corpus has broken, as opposed to those that a filter refused."""
    of_parts: Counter[int] = field(default_factory=Counter)
    """Drafts by part."""


def guess_of_all(totals: RunTotals, ended: Collection[int], num_parts: int) -> int | None:
    """Return about how many drafts a corpus has, from the parts that were read to their end; None without one."""
    if not ended:
        return None
    return max(totals.drafts, round(sum(totals.of_parts[part] for part in ended) / len(ended) * num_parts))


class Followed:
    """Runs that appear in a folder.

    Args:
        runs: the folder.
        on_drafts: is called with the drafts of runs that are new, and whether they were there at the beginning.
    """

    def __init__(self, runs: Path, on_drafts: Callable[[int, bool], None]) -> None:
        self._totals = RunTotals()
        self._runs, self._on_drafts = runs, on_drafts
        self._seen: set[RunName] = set()
        self._lock = threading.Lock()
        self.look(at_begin=True)

    def look(self, *, at_begin: bool = False) -> RunTotals:
        """Add the runs that are new; return the sums."""
        with self._lock:
            for name in list_runs(self._runs):
                if name not in self._seen:
                    self._seen.add(name)
                    facts = run_facts(name.path(self._runs))
                    self._totals.drafts += facts["drafts"]
                    self._totals.of_parts[name.part] += facts["drafts"]
                    self._totals.units += facts["units"]
                    self._totals.bad += facts["bad"]
                    self._on_drafts(facts["drafts"], at_begin)
        return self._totals


def sum_of_runs(runs: Path) -> RunTotals:
    """Return the sums over the runs of a folder."""
    return Followed(runs, lambda _drafts, _at_begin: None).look()


@contextmanager
def follow_runs(runs: Path, progress: WorkProgress) -> Iterator[Followed]:
    """Move a progress bar on while runs appear in a folder."""
    stop = threading.Event()
    followed = Followed(runs, lambda drafts, before: progress.advance(drafts, done_before=before))

    def watch() -> None:
        while not stop.wait(SECONDS_BETWEEN_LOOKS):
            followed.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield followed
    finally:
        stop.set()
        thread.join()
        followed.look()
