"""What a run counts over all its attempts: the samples that it has seen, and those that could not be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from cclm.data.batch import BadSample
from cclm.files.lines import StepLines


class SamplesSeen:
    """Samples by source and texts by source and language, counted exactly over all ranks.

    Keys, the same on every rank: `VIEW/SOURCE` counts samples, `VIEW/SOURCE/LANGUAGE` texts. Views that name no texts
    are counted by source.
    """

    def __init__(self, keys: Iterable[str], before: Mapping[str, int] | None = None) -> None:
        self._keys = sorted(keys)
        self.totals: dict[str, int] = {}
        """Of all ranks, as of the last `gather`."""
        self._local: Counter[str] = Counter()
        self.restore(before)

    def restore(self, before: Mapping[str, int] | None) -> None:
        """Go on from the counts of a checkpoint."""
        self.totals = dict.fromkeys(self._keys, 0) | dict(before or {})
        self._local.clear()

    def add(self, counts: Iterable[tuple[str, int]]) -> None:
        """Count this rank's share of a step (`Batch.samples_seen`)."""
        for key, count in counts:
            self._local[key] += count

    def gather(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, int]:
        """Add up the ranks' counts since the last time, in one collective; returns the totals."""
        unknown = set(self._local) - set(self._keys)
        assert not unknown, f"a manifest does not name {sorted(unknown)}"
        local = torch.tensor([self._local[key] for key in self._keys], dtype=torch.int64)
        for key, count in zip(self._keys, sum_over_ranks(local).tolist(), strict=True):
            self.totals[key] += count
        self._local.clear()
        return self.totals


class Quarantine:
    """Appends bad samples to `quarantine/rank_N.jsonl`, one line each, with the step that met them.

    Args:
        path: the file. One process writes it; with one file per rank, each its own.
        next_step: the step a resumed run starts with; lines of it and later ones are cut off, so none stands twice.
        left_behind: files of ranks that the run had once; cut off likewise, and counted here.
    """

    def __init__(self, path: Path | str, next_step: int = 0, left_behind: Iterable[Path] = ()) -> None:
        self._lines, self._left_behind = StepLines(path), [StepLines(one) for one in left_behind]
        self.counts: Counter[tuple[str, str]] = Counter()
        """How many, by (reason, source), of the whole run."""
        self.last = ""
        """Where the last bad sample stands and what is wrong with it."""
        self.rewind(next_step)

    def rewind(self, next_step: int) -> None:
        """Go on with `next_step`; lines of it and later ones are cut off."""
        self.counts.clear()
        self.last = ""
        for lines in (*self._left_behind, self._lines):
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
