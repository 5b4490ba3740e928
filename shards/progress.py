"""How far a build is: a bar with throughput and ETA on a terminal, plain lines in a log."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from cclm.track.progress import make_bar, spell_duration
from shards.chunks import ChunkName, chunk_facts, list_chunks

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_LOOKS = 1.0


class WorkProgress:
    """Counts work that is done, in units with a name in the plural; a context manager.

    Without a total there is throughput but no ETA; a console that is no terminal gets a line every ten seconds.
    """

    def __init__(self, label: str, total: int | None, unit: str, console: Console) -> None:
        self._label, self._total, self._unit, self._console = label, total, unit, console
        self._done, self._skipped, self._started = 0, 0, time.monotonic()
        self._last_line, self._said = self._started, -1
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
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, facts=self._facts(), description=escape(note or self._label))
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._say()

    def _facts(self) -> str:
        rate = (self._done - self._skipped) / max(time.monotonic() - self._started, 1e-3)
        if rate <= 0:
            return "done before"
        left = "" if self._total is None else f"  ETA {spell_duration(max(self._total - self._done, 0) / rate)}"
        return f"{rate:,.0f} {self._unit}/s{left}"

    def _say(self) -> None:
        self._last_line, self._said = time.monotonic(), self._done
        of = "" if self._total is None else f"/{self._total:,}"
        self._console.print(f"{self._label}: {self._done:,}{of}  {self._facts()}", highlight=False)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._said != self._done:
            self._say()


class Followed:
    """Chunks that appear in a folder, of whatever process or machine; inside a `with` block a bar moves with them."""

    def __init__(self, chunks: Path, progress: WorkProgress | None = None) -> None:
        self.facts: Counter[str] = Counter()
        """Sums over the chunks: `records` of the corpus, `units` that the counts add up in, and of them `bad` ones,
        which the corpus has broken, as opposed to those that a filter refused."""
        self.of_parts: Counter[int] = Counter()
        """Records by part."""
        self._chunks, self._progress = chunks, progress
        self._seen: set[ChunkName] = set()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.look(at_begin=True)

    def __enter__(self) -> Followed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def _watch(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_LOOKS):
            self.look()

    def look(self, *, at_begin: bool = False) -> Counter[str]:
        """Add the chunks that are new; return the sums."""
        with self._lock:
            for name in list_chunks(self._chunks):
                if name not in self._seen:
                    self._seen.add(name)
                    facts = chunk_facts(name.path(self._chunks))
                    self.facts.update(facts)
                    self.of_parts[name.part] += facts["records"]
                    if self._progress is not None:
                        self._progress.advance(facts["records"], done_before=at_begin)
        return self.facts

    def guess_of_all(self, ended: Collection[int], num_parts: int) -> int | None:
        """Return about how many records a corpus has, from the parts that were read to their end; None without one."""
        if not ended:
            return None
        return max(self.facts["records"], round(sum(self.of_parts[part] for part in ended) / len(ended) * num_parts))
