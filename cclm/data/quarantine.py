"""Samples that could not be used: kept one by one in `quarantine/rank_N.jsonl`, counted by reason and source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from cclm.data.batch import BadSample
from cclm.files.lines import StepLines


class Quarantine:
    """Appends bad samples, one line each, with the step that met them.

    Args:
        path: the file. One process writes it; with one file per rank, each its own.
        next_step: the step a resumed run starts with; lines of it and later ones are cut off, so none stands twice.
        left_behind: files of ranks that the run had once; cut off likewise, and counted here.
    """

    def __init__(self, path: Path | str, next_step: int = 0, left_behind: Iterable[Path] = ()) -> None:
        self._lines = StepLines(path)
        self.counts: Counter[tuple[str, str]] = Counter()
        """How many, by (reason, source), of the whole run."""
        self.last = ""
        """Where the last bad sample stands and what is wrong with it."""
        for lines in (*map(StepLines, left_behind), self._lines):
            lines.truncate(next_step)
            for line in lines.read():
                self.counts[str(line["reason"]), str(line["source"])] += 1
                self.last = str(line["message"])

    def add(self, step: int, samples: Iterable[BadSample]) -> None:
        """Write the bad samples of one step."""
        for sample in samples:
            self._lines.append(step, asdict(sample))
            self.counts[sample.reason, sample.source] += 1
            self.last = sample.message

    def sync(self) -> None:
        """Force the file to disk; before a checkpoint is complete, which makes a resumed run count on it."""
        self._lines.sync()

    @property
    def total(self) -> int:
        """How many bad samples the run has met."""
        return sum(self.counts.values())

    def summary(self) -> str:
        """One line for people: the counts by reason and source, most frequent first, and the last bad sample."""
        parts = [f"{count} × {reason} in {source}" for (reason, source), count in self.counts.most_common()]
        return "; ".join(parts) + f"; the last: {self.last.rstrip('.')}" if parts else "no bad samples"
