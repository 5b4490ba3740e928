"""How the proportions of sources and languages change over the steps: planned weights, sources that are used up.

The plan is made once, at the start, by arithmetic over the draws; nothing is counted while training, so every rank and
every resumed run has the same plan.

The languages of a source are interleaved over its draws as the sources are over a lane (`cclm.data.mixture`). A record
that lacks the requested language shows another one that it has, by the same weights; where all records have all
languages, the proportions are exact.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cclm.data.mixture import Interleaving, LaneAssignment, Mixture
from cclm.data.options import MixConfig, SourceConfig
from cclm.errors import ConfigError

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


@dataclass(frozen=True)
class RequestedLanguage:
    """Which language a draw should show."""

    weights: Mapping[str, float]
    """Positive weights of the languages that may be shown."""
    language: str | None
    """The one whose turn it is; None: by the weights alone."""

    def pick(self, available: Sequence[str], draw: float) -> str | None:
        """Return an available language, by a uniform number if the requested one is not among them; None: none may."""
        if self.language in available:
            return self.language
        names = [name for name in available if name in self.weights]
        threshold = draw * sum(self.weights[name] for name in names)
        for name in names:
            threshold -= self.weights[name]
            if threshold < 0:
                return name
        return names[-1] if names else None


class LanguageMix:
    """Deals languages to the draws of all sources (ConfigError: a source has no language with a weight).

    `languages_by_source` is what each source has by its manifest, in the order of the sources.
    """

    def __init__(
        self, mix: MixConfig, languages_by_source: Mapping[str, Sequence[str]], assignment: LaneAssignment
    ) -> None:
        stages = [(0, mix.language_weights)] + [(stage.start_step, stage.language_weights) for stage in mix.schedule]
        given = [(step, table) for step, table in stages if table is not None]
        self._num_lanes = assignment.num_lanes
        lanes = range(self._num_lanes)
        self._starts = [[assignment.turns_before(step, lane) for step, _ in given] for lane in lanes]
        self._interleavings = [
            [self._deal(table, languages, source) for source, languages in languages_by_source.items()]
            for _, table in given
        ]

    def requested(self, source: int, lane: int, turn: int, draw: int) -> RequestedLanguage | None:
        """What a lane's draw from a source should show; None: before the first weights.

        The lane gave `turn` draws before, `draw` of them from this source.
        """
        stage = bisect_right(self._starts[lane], turn) - 1
        if stage < 0:
            return None
        names, weights, interleaving = self._interleavings[stage][source]
        return RequestedLanguage(weights, names[interleaving.source(lane, draw)])

    def _deal(
        self, table: Mapping[str, float], languages: Sequence[str], source: str
    ) -> tuple[list[str], dict[str, float], Interleaving]:
        weights = {name: table[name] for name in sorted(table) if table[name] > 0 and name in languages}
        if not weights:
            raise ConfigError(
                expected=f"a language with a weight in every source ({', '.join(table)})",
                got=f"{', '.join(languages) or 'no language'} in source {source}",
                do="Give one of these a weight in `mix.language_weights`, or leave the source out.",
            )
        return list(weights), weights, Interleaving(list(weights.values()), self._num_lanes)
