"""How the proportions of the sources change over the steps: planned weights, and sources that are used up.

The plan is made once, at the start, by arithmetic over the draws; nothing is counted while training, so every rank and
every resumed run has the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cclm.data.mixture import LaneAssignment, Mixture
from cclm.data.options import MixConfig, SourceConfig

FOREVER = 1 << 62
"""A limit that no run reaches."""


def base_weights(totals: Sequence[int], sources: Sequence[SourceConfig], mix: MixConfig) -> list[float]:
    """Return the sources' weights at step 0: as given, or (size · repeat) ^ (1 / temperature)."""
    given = [source.weight for source in sources if source.weight is not None]
    if given:
        return given
    sizes = [total * source.repeat for total, source in zip(totals, sources, strict=True)]
    if mix.temperature == 1.0:
        return sizes
    powers = [size ** (1.0 / mix.temperature) for size in sizes]
    return [power / max(powers) for power in powers]


def plan_mixture(
    weights: Sequence[float],
    changes: Sequence[tuple[int, Sequence[float]]],
    limits_SL: NDArray[np.int64],
    assignment: LaneAssignment,
) -> tuple[Mixture, int | None]:
    """Lay out every change of the weights; return also the first step for which every source is used up, if any is.

    `weights` are those of step 0, `changes` the planned ones: (first step, weights from there on), in order.
    `limits_SL` says how many draws each source can give to each lane; `FOREVER` for no limit.
    """
    pending = [(step, list(later)) for step, later in changes]
    current, used_up = list(weights), np.zeros(len(weights), dtype=bool)
    mixture, step = Mixture(current, assignment.num_lanes), 0
    while True:
        until = pending[0][0] if pending else None
        found = _next_end(mixture, limits_SL, used_up, assignment, step, until)
        if found is not None:
            step, ended = found
            used_up = used_up | ended
        elif pending:
            step, current = pending.pop(0)
        else:
            return mixture, None
        left = [0.0 if gone else weight for weight, gone in zip(current, used_up, strict=True)]
        if not any(left):
            return mixture, step
        mixture.change(left, [assignment.turns_before(step, lane) for lane in range(assignment.num_lanes)])


def _next_end(
    mixture: Mixture,
    limits_SL: NDArray[np.int64],
    used_up: NDArray[np.bool_],
    assignment: LaneAssignment,
    step: int,
    until: int | None,
) -> tuple[int, NDArray[np.bool_]] | None:
    """The first step before `until` that would draw more from a source than it has, and the sources this is true of."""

    def overdrawn(steps: int) -> NDArray[np.bool_]:
        """By source: would the steps before `steps` draw too much?"""
        lanes = range(assignment.num_lanes)
        drawn_LS = np.stack([mixture.drawn(lane, assignment.turns_before(steps, lane)) for lane in lanes])
        over: NDArray[np.bool_] = (limits_SL < drawn_LS.T).any(axis=1) & ~used_up
        return over

    limited = (limits_SL < FOREVER).any(axis=1) & ~used_up & (np.array(mixture.counts) > 0)
    if not limited.any():
        return None
    low, reach = step, 1  # the steps before `low` are fine
    while not overdrawn(low + reach).any():
        low, reach = low + reach, 2 * reach
        if until is not None and low >= until:
            return None
    high = low + reach  # the steps before `high` are too many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if overdrawn(middle).any() else (middle, high)
    if until is not None and low >= until:
        return None
    return low, overdrawn(low + 1)
