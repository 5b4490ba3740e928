"""FLOPs of a step of a running recipe, by view and part of the network, at the lengths that its texts have."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cclm.config import RunConfig
from cclm.costs.recipe import Counter, rows_of

KINDS = frozenset({"image_text", "regions", "text_pair"})
"""Views whose rows through the network are known."""
GRID = 8
"""Costs are counted at so many shares of the longest text, and lie on straight lines between them."""


class StepCosts:
    """Counts when it is asked: a second for a large network, once for each share of the grid."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._counter: Counter | None = None
        self._found: dict[tuple[str, int], dict[str, float]] = {}

    @staticmethod
    def are_known(config: RunConfig) -> bool:
        """Return whether they can be counted: of a pre-training with the views of this library, on whole images."""
        return config.finetune is None and KINDS.issuperset(config.views) and config.model.vision.keep_patches == 1

    def flops(self, text_fill: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """FLOPs of the global batch, forward and backward, by view and part ("vision", "text", "fusion", "heads").
        `text_fill`: by view, real tokens of a text as a share of the longest. Neither padding counts nor what
        activation checkpointing computes again."""
        return {view: self._between(view, min(1.0, max(0.0, fill))) for view, fill in text_fill.items()}

    def _between(self, view: str, fill: float) -> dict[str, float]:
        place = max(1.0, fill * GRID)
        below, above = (self._at(view, corner) for corner in (math.floor(place), math.ceil(place)))
        share = place - math.floor(place)
        return {part: (1 - share) * below[part] + share * above[part] for part in below}

    def _at(self, view: str, corner: int) -> dict[str, float]:
        if (view, corner) not in self._found:
            self._counter = self._counter or Counter(self._config)
            sums = dict[str, float]()
            for call in rows_of(view, self._config.views[view], self._counter, corner / GRID)[0]:
                sums[call.part] = sums.get(call.part, 0.0) + call.rows * call.cost.flops
            self._found[view, corner] = sums
        return self._found[view, corner]
