"""Which source a draw comes from: exact proportions, as a pure function of the draw's number.

The weights become integer quotas over a period of D draws. One period is laid out so that every prefix of it holds
each source's fair share to within one draw (Tijdeman's solution of the chairman assignment problem, 1980), and the
period repeats. How often a source was drawn before is then a table look-up, so a stream can start anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cclm.errors import ConfigError

LONGEST_PERIOD = 4096


def quotas(weights: Sequence[float]) -> list[int]:
    """Integer shares of one period, in the weights' proportions.

    Exact if the weights have a common denominator up to 4096 (0.6 : 0.4 gives 3 : 2); otherwise rounded to
    1/4096 by largest remainders, at least one draw for each source.
    """
    if not weights or any(not math.isfinite(weight) or weight <= 0 for weight in weights):
        raise ConfigError(
            expected="positive weights, one for each source", got=repr(list(weights)), do="Correct `weights`."
        )
    parts = [Fraction(weight).limit_denominator(LONGEST_PERIOD) for weight in weights]
    if all(parts):
        shares = [part / sum(parts) for part in parts]
        period = math.lcm(*(share.denominator for share in shares))
        if period <= LONGEST_PERIOD:
            return [int(share * period) for share in shares]
    ideal = [weight / math.fsum(weights) * LONGEST_PERIOD for weight in weights]
    result = [max(1, int(value)) for value in ideal]
    order = sorted(range(len(ideal)), key=lambda index: ideal[index] % 1, reverse=True)
    for index in order[: max(0, LONGEST_PERIOD - sum(result))]:
        result[index] += 1
    return result


def balanced_period(counts: Sequence[int]) -> NDArray[np.int64]:
    """Order the draws of one period so that every prefix is within one draw of each source's fair share."""
    period, num_sources = sum(counts), len(counts)
    if num_sources == 1:
        return np.zeros(period, dtype=np.int64)
    grain = 2 * num_sources - 2  # everything below is in units of 1 / (period * grain), so the arithmetic is exact
    drawn = [0] * num_sources
    order = np.empty(period, dtype=np.int64)
    for turn in range(1, period + 1):
        best, best_deadline = -1, Fraction(0)
        for source, count in enumerate(counts):
            behind = grain * (count * turn - period * drawn[source])
            if behind < period:
                continue
            deadline = Fraction(period * (grain - 1) - behind, count)
            if best < 0 or deadline < best_deadline:
                best, best_deadline = source, deadline
        order[turn - 1] = best
        drawn[best] += 1
    return order


class Mixture:
    """Deals the draws of each lane to the sources.

    All lanes follow the same period; lane l starts l/num_lanes of the way into it, so that one draw from every lane is
    already mixed.
    """

    def __init__(self, weights: Sequence[float], num_lanes: int) -> None:
        self.counts = quotas(weights)
        self.period = sum(self.counts)
        self._order = balanced_period(self.counts)
        hits = self._order[None, :] == np.arange(len(self.counts))[:, None]
        self._before = np.concatenate([np.zeros((len(self.counts), 1), np.int64), np.cumsum(hits, axis=1)], axis=1)
        self._phase = [lane * self.period // num_lanes for lane in range(num_lanes)]

    def pick(self, lane: int, turn: int) -> tuple[int, int]:
        """The source of a lane's draw number `turn`, and how many draws the lane took from that source before."""
        phase = self._phase[lane]
        source = int(self._order[(phase + turn) % self.period])
        return source, self._drawn(source, phase + turn) - self._drawn(source, phase)

    def _drawn(self, source: int, turn: int) -> int:
        periods, rest = divmod(turn, self.period)
        return periods * self.counts[source] + int(self._before[source, rest])
