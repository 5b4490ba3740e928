"""Which views a step holds, and which batch of its stream each of them takes: a pure function of (config, seed, step).

    joint       every step   image_text + regions + text_pair, one update
    alternate   step 0       text_pair | regions | image_text          one update each
                step k > 0   text_pair | regions or image_text, by a coin that all ranks toss alike

A view's batches are counted over the steps that hold it, so nothing of a stream is skipped (the published loader drew
an image batch for every iteration and threw every second one away).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cclm.data.options import Schedule
from cclm.data.seeding import Purpose, keyed_generator

BLOCK = 4096
"""Coins that are drawn together."""


class ViewSchedule:
    """The order of the views.

    Args:
        views: the configured ones, of "text_pair", "regions" and "image_text".
        schedule: "joint" or "alternate".
        region_probability: of a region update instead of an image update, in "alternate" with both.
        seed: the seed of the run.
    """

    ORDER = ("text_pair", "regions", "image_text")
    """Of the updates of one step."""

    def __init__(self, views: set[str], schedule: Schedule, region_probability: float, seed: int) -> None:
        self._all = tuple(view for view in self.ORDER if view in views)
        self.schedule, self._probability, self._seed = schedule, region_probability, seed
        self._tosses = schedule == "alternate" and {"regions", "image_text"} <= views
        self._blocks: list[tuple[NDArray[np.bool_], int]] = []

    def views(self, step: int) -> tuple[str, ...]:
        """The views of a step, in the order of their updates."""
        if not self._tosses or step == 0:
            return self._all
        unwanted = "image_text" if self._is_region(step) else "regions"
        return tuple(view for view in self._all if view != unwanted)

    def index(self, view: str, step: int) -> int:
        """How many steps before this one held the view: the number of its batch in its stream."""
        if not self._tosses or view == "text_pair" or step == 0:
            return step
        regions = self._regions_before(step)
        return regions if view == "regions" else step + 1 - regions

    def _is_region(self, step: int) -> bool:
        block, place = divmod(step, BLOCK)
        return bool(self._block(block)[0][place])

    def _regions_before(self, step: int) -> int:
        """Steps 0 … step - 1 that hold regions; step 0 holds both."""
        block, place = divmod(step, BLOCK)
        coins, before = self._block(block)
        return before + int(coins[:place].sum())

    def _block(self, number: int) -> tuple[NDArray[np.bool_], int]:
        """Coins of a block, and how many of the blocks before fell on regions."""
        while len(self._blocks) <= number:
            place = (len(self._blocks), 0, 0)
            coins = keyed_generator(self._seed, Purpose.SCHEDULE, 0, place).random(BLOCK) < self._probability
            if not self._blocks:
                coins[0] = True
            before = sum(int(block.sum()) for block, _ in self._blocks[-1:])
            before += self._blocks[-1][1] if self._blocks else 0
            self._blocks.append((coins, before))
        return self._blocks[number]
