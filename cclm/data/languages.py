"""Which language a draw should show: exact proportions in every lane, as a pure function of the draw.

The languages of a source are interleaved over its draws as the sources are over a lane (`cclm.data.mixture`). A record
that lacks the requested language shows another one that it has, by the same weights; where all records have all
languages, the proportions are exact.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cclm.data.mixture import Interleaving, LaneAssignment
from cclm.data.options import MixConfig
from cclm.errors import ConfigError


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
    """Deals languages to the draws of all sources.

    Args:
        mix: `language_weights`, and those of its schedule.
        languages_by_source: what each source has by its manifest, by the sources' names and in their order.
        assignment: of slots to lanes.

    Raises:
        ConfigError: a source has none of the languages that have a weight.
    """

    def __init__(
        self, mix: MixConfig, languages_by_source: Mapping[str, Sequence[str]], assignment: LaneAssignment
    ) -> None:
        stages = [(0, mix.language_weights)] + [(stage.start_step, stage.language_weights) for stage in mix.schedule]
        given = [(step, table) for step, table in stages if table is not None]
        self._steps = [step for step, _ in given]
        lanes = range(assignment.num_lanes)
        self._starts = [[assignment.turns_before(step, lane) for step in self._steps] for lane in lanes]
        self._num_lanes = assignment.num_lanes
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
