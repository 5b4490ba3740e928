"""Which source a draw comes from: exact proportions, as a pure function of the draw's number.

The weights become integer quotas over a period of D draws. One period is laid out so that every prefix of it holds
each source's fair share to within one draw (Tijdeman's solution of the chairman assignment problem, 1980), and the
period repeats. How often a source was drawn before is then a table look-up, so a stream can start anywhere. When the
weights change (`cclm.data.mix_plan`), a new period begins in every lane, and the counts go on.

How a batch is assigned to the lanes, for any two numbers:

    g = gcd(batch size, lanes): g blocks of neighbouring indices, each served by its own block of neighbouring lanes

    batch 6, lanes 4, g = 2      indices 0 1 2 | 3 4 5        lanes 0 1 | 2 3
    step 0                       lane  0 1 0 | 2 3 2
    step 1                       lane  1 0 1 | 3 2 3        the lanes of a block take turns, from step to step

No number has to divide another. A common factor keeps a rank's indices on lanes of its own, so that a node reads few
shards; without one every rank reads every lane, and the samples are the same.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cclm.errors import ConfigError

LONGEST_PERIOD = 4096


@dataclass(frozen=True)
class LaneAssignment:
    """Index of a step → lane and turn, for every step; pure arithmetic."""

    batch_size: int
    num_lanes: int

    @property
    def _block(self) -> tuple[int, int]:
        """Indices and lanes of a block: indices of different blocks share no lane."""
        num_blocks = math.gcd(self.batch_size, self.num_lanes)
        return self.batch_size // num_blocks, self.num_lanes // num_blocks

    def lane_turn(self, step: int, index: int) -> tuple[int, int]:
        """The lane that serves an index of a step, and how many draws that lane gave before."""
        indices, lanes = self._block
        block, inside = divmod(index, indices)
        turn, lane = divmod(step * indices + inside, lanes)
        return block * lanes + lane, turn

    def turns_before(self, step: int, lane: int) -> int:
        """How many draws a lane gave in the steps before `step`."""
        indices, lanes = self._block
        return -((lane % lanes - step * indices) // lanes)


def quotas(weights: Sequence[float]) -> list[int]:
    """Integer shares of one period, in the weights' proportions.

    Exact if the weights have a common denominator up to 4096 (0.6 : 0.4 gives 3 : 2); otherwise rounded to
    1/4096 by largest remainders, at least one draw for each source. A weight of 0 gives no draw.
    """
    if not any(weights) or any(not math.isfinite(weight) or weight < 0 for weight in weights):
        raise ConfigError(
            expected="weights of 0 or more for each source, not all 0",
            got=repr(list(weights)),
            do="Correct `weights`.",
        )
    parts = [Fraction(weight).limit_denominator(LONGEST_PERIOD) for weight in weights]
    if all(part or not weight for part, weight in zip(parts, weights, strict=True)):
        shares = [part / sum(parts) for part in parts]
        period = math.lcm(*(share.denominator for share in shares))
        if period <= LONGEST_PERIOD:
            return [int(share * period) for share in shares]
    ideal = [weight / math.fsum(weights) * LONGEST_PERIOD for weight in weights]
    result = [max(1, int(value)) if value else 0 for value in ideal]
    order = sorted((index for index, value in enumerate(ideal) if value), key=lambda i: ideal[i] % 1, reverse=True)
    for index in order[: max(0, LONGEST_PERIOD - sum(result))]:
        result[index] += 1
    return result


def balanced_period(counts: Sequence[int]) -> NDArray[np.int64]:
    """Order the draws of one period so that every prefix is within one draw of each source's fair share."""
    period, num_sources = sum(counts), len(counts)
    if num_sources == 1 or period == max(counts):
        return np.full(period, int(np.argmax(counts)), dtype=np.int64)
    grain = 2 * num_sources - 2  # everything below is in units of 1 / (period * grain), so the arithmetic is exact
    drawn = [0] * num_sources
    order = np.empty(period, dtype=np.int64)
    for turn in range(1, period + 1):
        deadlines: dict[int, Fraction] = {}
        for source, count in enumerate(counts):
            behind = grain * (count * turn - period * drawn[source])
            if count and behind >= period:
                deadlines[source] = Fraction(period * (grain - 1) - behind, count)
        best = min(deadlines, key=deadlines.__getitem__)
        order[turn - 1] = best
        drawn[best] += 1
    return order


class Interleaving:
    """One set of weights, laid out: which source each draw of a lane takes, for as long as the weights hold.

    All lanes follow the same period; lane l starts l/num_lanes of the way into it, so that one draw from every lane is
    already mixed.
    """

    def __init__(self, weights: Sequence[float], num_lanes: int) -> None:
        self.counts = quotas(weights)
        self.period = sum(self.counts)
        self._order = balanced_period(self.counts)
        hits = self._order[:, None] == np.arange(len(self.counts))[None, :]
        self._before = np.concatenate([np.zeros((1, len(self.counts)), np.int64), np.cumsum(hits, axis=0)])
        self._phase = [lane * self.period // num_lanes for lane in range(num_lanes)]

    def source(self, lane: int, turn: int) -> int:
        """The source of a lane's draw number `turn`."""
        return int(self._order[(self._phase[lane] + turn) % self.period])

    def drawn(self, source: int, lane: int, turn: int) -> int:
        """How often a source was drawn by a lane before its draw number `turn`."""
        phase = self._phase[lane]
        periods, rest = divmod(phase + turn, self.period)
        return periods * self.counts[source] + int(self._before[rest, source]) - int(self._before[phase, source])


class Mixture:
    """Deals the draws of each lane to the sources, by weights that may change from a turn on."""

    def __init__(self, weights: Sequence[float], num_lanes: int) -> None:
        self.num_lanes = num_lanes
        self._interleavings = [Interleaving(weights, num_lanes)]
        self._starts: list[list[int]] = [[0] for _ in range(num_lanes)]
        self._drawn = [np.zeros((num_lanes, len(weights)), dtype=np.int64)]

    @property
    def counts(self) -> list[int]:
        """The quotas of the newest weights."""
        return self._interleavings[-1].counts

    def change(self, weights: Sequence[float], turns: Sequence[int]) -> None:
        """Other weights from each lane's draw number `turns[lane]` on (not before the last change)."""
        drawn = np.stack([self.drawn(lane, turn) for lane, turn in enumerate(turns)])
        self._interleavings.append(Interleaving(weights, self.num_lanes))
        self._drawn.append(drawn)
        for starts, turn in zip(self._starts, turns, strict=True):
            assert turn >= starts[-1], "weights change in the order of the steps"
            starts.append(turn)

    def pick(self, lane: int, turn: int) -> tuple[int, int]:
        """The source of a lane's draw number `turn`, and how many draws the lane took from that source before."""
        stage, since = self._stage(lane, turn)
        interleaving = self._interleavings[stage]
        source = interleaving.source(lane, since)
        return source, int(self._drawn[stage][lane, source]) + interleaving.drawn(source, lane, since)

    def drawn(self, lane: int, turn: int) -> NDArray[np.int64]:
        """How often each source was drawn by a lane before its draw number `turn`."""
        stage, since = self._stage(lane, turn)
        interleaving, before = self._interleavings[stage], self._drawn[stage][lane]
        since_then = [interleaving.drawn(source, lane, since) for source in range(len(before))]
        total: NDArray[np.int64] = before + np.array(since_then, dtype=np.int64)
        return total

    def _stage(self, lane: int, turn: int) -> tuple[int, int]:
        stage = bisect_right(self._starts[lane], turn) - 1
        return stage, turn - self._starts[lane][stage]
