"""Slot of a step → lane and turn: how a batch is assigned to the lanes, for any two numbers.

    g = gcd(batch size, lanes): g blocks of neighbouring slots, each served by its own block of neighbouring lanes

    batch 6, lanes 4, g = 2      slots 0 1 2 | 3 4 5        lanes 0 1 | 2 3
    step 0                       lane  0 1 0 | 2 3 2
    step 1                       lane  1 0 1 | 3 2 3        the lanes of a block take turns, from step to step

No number has to divide another. A common factor keeps a rank's slots on lanes of its own, so that a node reads few
shards; without one every rank reads every lane, and the samples are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LaneAssignment:
    """The assignment of every step; pure arithmetic.

    Args (of the class):
        batch_size: slots of a global batch.
        num_lanes: lanes of the stream.
    """

    batch_size: int
    """Slots of a global batch."""
    num_lanes: int
    """Lanes of the stream."""

    @property
    def num_blocks(self) -> int:
        """Blocks of slots that share no lane."""
        return math.gcd(self.batch_size, self.num_lanes)

    def lane_turn(self, step: int, slot: int) -> tuple[int, int]:
        """The lane that serves a slot of a step, and how many draws that lane gave before."""
        slots, lanes = self.batch_size // self.num_blocks, self.num_lanes // self.num_blocks
        block, inside = divmod(slot, slots)
        turn, lane = divmod(step * slots + inside, lanes)
        return block * lanes + lane, turn

    def turns_before(self, step: int, lane: int) -> int:
        """How many draws a lane gave in the steps before `step`."""
        slots, lanes = self.batch_size // self.num_blocks, self.num_lanes // self.num_blocks
        return -((lane % lanes - step * slots) // lanes)
