"""Which views a step holds, and which batch of its stream each of them takes: a pure function of (config, seed, step).

    joint       every step   all views, one update
    alternate   step 0       all views, one update each
                step k > 0   of two views that take turns one, by a coin that all ranks toss alike; and all others

A view's batches are counted over the steps that hold it, so nothing of a stream is skipped (the published loader drew
an image batch for every iteration and threw every second one away).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cclm.data.config import Views
from cclm.data.options import Schedule
from cclm.data.seeding import Purpose, keyed_generator

BLOCK = 4096
"""Coins that are drawn together."""


class ViewSchedule:
    """The order of the views of a run."""

    def __init__(self, views: Views, schedule: Schedule, seed: int) -> None:
        self._all = tuple(reversed(list(views)))
        self.schedule, self._seed = schedule, seed
        turns = ((name, view.takes_turns_with) for name, view in views.items() if schedule == "alternate")
        self._coin = next(((name, turn[0], turn[1]) for name, turn in turns if turn and turn[0] in views), None)
        self._blocks: list[tuple[NDArray[np.bool_], int]] = []

    def views(self, step: int) -> tuple[str, ...]:
        """The views of a step, in the order of their updates: from the table's last to its first."""
        if self._coin is None or step == 0:
            return self._all
        own, other, _ = self._coin
        coins, _ = self._block(step // BLOCK)
        unwanted = other if coins[step % BLOCK] else own
        return tuple(view for view in self._all if view != unwanted)

    def index(self, view: str, step: int) -> int:
        """How many steps before this one held the view: the number of its batch in its stream."""
        if self._coin is None or view not in self._coin[:2] or step == 0:
            return step
        coins, before = self._block(step // BLOCK)
        own = before + int(coins[: step % BLOCK].sum())  # of the steps before; step 0 holds both
        return own if view == self._coin[0] else step + 1 - own

    def _block(self, number: int) -> tuple[NDArray[np.bool_], int]:
        """Coins of a block, and how many of the blocks before fell on the first view."""
        assert self._coin is not None
        while len(self._blocks) <= number:
            place = (len(self._blocks), 0, 0)
            coins = keyed_generator(self._seed, Purpose.SCHEDULE, 0, place).random(BLOCK) < self._coin[2]
            if not self._blocks:
                coins[0] = True
            before = self._blocks[-1][1] + int(self._blocks[-1][0].sum()) if self._blocks else 0
            self._blocks.append((coins, before))
        return self._blocks[number]
