"""How far the reading of a corpus is, seen from the chunks that appear: by whatever process or machine."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shards.chunks import ChunkName, chunk_facts, list_chunks
from shards.progress import WorkProgress

SECONDS_BETWEEN_LOOKS = 1.0


@dataclass
class ChunkTotals:
    """Sums over chunks."""

    records: int = 0
    """What the corpus yielded."""
    units: int = 0
    """What the counts add up in."""
    bad: int = 0
    """Units that the corpus has broken, as opposed to those that a filter refused."""
    of_parts: Counter[int] = field(default_factory=Counter)
    """Records by part."""


def guess_of_all(totals: ChunkTotals, ended: Collection[int], num_parts: int) -> int | None:
    """Return about how many records a corpus has, from the parts that were read to their end; None without one."""
    if not ended:
        return None
    return max(totals.records, round(sum(totals.of_parts[part] for part in ended) / len(ended) * num_parts))


class Followed:
    """Chunks that appear in a folder.

    Args:
        chunks: the folder.
        on_records: is called with the number of records of new chunks, and whether they were there at the beginning.
    """

    def __init__(self, chunks: Path, on_records: Callable[[int, bool], None]) -> None:
        self._totals = ChunkTotals()
        self._chunks, self._on_records = chunks, on_records
        self._seen: set[ChunkName] = set()
        self._lock = threading.Lock()
        self.look(at_begin=True)

    def look(self, *, at_begin: bool = False) -> ChunkTotals:
        """Add the chunks that are new; return the sums."""
        with self._lock:
            for name in list_chunks(self._chunks):
                if name not in self._seen:
                    self._seen.add(name)
                    facts = chunk_facts(name.path(self._chunks))
                    self._totals.records += facts["records"]
                    self._totals.of_parts[name.part] += facts["records"]
                    self._totals.units += facts["units"]
                    self._totals.bad += facts["bad"]
                    self._on_records(facts["records"], at_begin)
        return self._totals


def sum_of_chunks(chunks: Path) -> ChunkTotals:
    """Return the sums over the chunks of a folder."""
    return Followed(chunks, lambda _records, _at_begin: None).look()


@contextmanager
def follow_chunks(chunks: Path, progress: WorkProgress) -> Iterator[Followed]:
    """Move a progress bar on while chunks appear in a folder."""
    stop = threading.Event()
    followed = Followed(chunks, lambda records, before: progress.advance(records, done_before=before))

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
