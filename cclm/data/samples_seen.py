"""What a run has seen: samples by source, texts by source and language, counted exactly over all ranks and attempts.

Keys: `VIEW/SOURCE` counts samples, `VIEW/SOURCE/LANGUAGE` texts. Views that name no texts are counted by source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor


class SamplesSeen:
    """Global counts.

    Args:
        keys: all that may be counted, the same on every rank.
        before: counts of the run's earlier attempts, up to the checkpoint.
    """

    def __init__(self, keys: Iterable[str], before: Mapping[str, int] | None = None) -> None:
        self._keys = sorted(keys)
        self.totals: dict[str, int] = dict.fromkeys(self._keys, 0) | dict(before or {})
        """Of all ranks, as of the last `gather`."""
        self._local: Counter[str] = Counter()

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
