"""Which rank keeps the others waiting: for its batch, or by coming late to a step. No collective of its own.

    rank 3:  ── step k ──┤ waits for its batch ├─ rest ─┤            the agreement of step k + 1 begins
    rank 0:  ── step k ──┤ batch ├─ rest ─┤░░ waits for rank 3 ░░┤   (`cclm.distributed.agreement`)

Each rank measures the two waits of a step, and sends them with the integers of the next agreement. Who waits less in
there came later, so no clocks are compared. A GPU that computes slowly is not seen: inside of a step all wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

MICRO = 1e-6


class Pace:
    """Adds up what the ranks measured over a window."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.own = [0, 0]
        """Of the newest step, in microseconds: this rank's wait for its batch, and in the agreement."""
        self._clock = clock
        self._data_s = 0.0
        self._steps = 0
        self._data: list[float] = []
        self._late: list[float] = []

    @contextmanager
    def fetching(self) -> Iterator[None]:
        """Time a rank's wait for its batch."""
        began = self._clock()
        yield
        self._data_s = self._clock() - began

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Time the agreement behind it."""
        began = self._clock()
        yield
        self.own = [round(self._data_s / MICRO), round((self._clock() - began) / MICRO)]

    def hear(self, ranks: Sequence[Sequence[int]]) -> None:
        """Add what all ranks, in their order, measured of the step before."""
        data = [row[0] * MICRO for row in ranks]
        arrived = [-row[1] * MICRO - wait for row, wait in zip(ranks, data, strict=True)]
        late = [one - min(arrived) for one in arrived]  # without the wait for the batch
        if self._steps == 0:
            self._data, self._late = [0.0] * len(ranks), [0.0] * len(ranks)
        self._data = [total + one for total, one in zip(self._data, data, strict=True)]
        self._late = [total + one for total, one in zip(self._late, late, strict=True)]
        self._steps += 1

    def numbers(self) -> dict[str, float]:
        """Return the window's numbers by metric name, and open a new one; empty without other ranks.

        "speed/data_slowest_rank": who waited longest for its batches; "…_s", "…_ratio": by how much more than the
        median of the ranks, in seconds of a step, and how many times that. "speed/late_rank", "speed/late_s": who
        came latest to the steps for other reasons, and how much later than the median.
        """
        steps, self._steps = self._steps, 0
        if not steps:
            return {}
        (slow, waited_s, usual_s), (late, came_s, others_s) = (_largest(one, steps) for one in (self._data, self._late))
        return {
            "speed/data_slowest_rank": float(slow),
            "speed/data_slowest_s": waited_s - usual_s,
            "speed/data_slowest_ratio": waited_s / max(usual_s, MICRO),
            "speed/late_rank": float(late),
            "speed/late_s": came_s - others_s,
        }


def _largest(totals: Sequence[float], steps: int) -> tuple[int, float, float]:
    """The rank with the largest value, that value and the ranks' median, by step."""
    rank = max(range(len(totals)), key=lambda one: totals[one])
    return rank, totals[rank] / steps, median(totals) / steps
