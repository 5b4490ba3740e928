"""The slow twin of `Stream`: writes every epoch down as a list and deals it out, draw by draw, from the beginning.

It shares with `Stream` only the seeded shuffles themselves; concatenation, lanes, windows, mixing and epochs are
plain loops.
"""

from __future__ import annotations

from collections.abc import Sequence

from cclm.data.mixture import balanced_period, quotas
from cclm.data.stream import Address, draw_shard_order, draw_window_order


class PlainStream:
    """Same arguments and same `address` as `Stream`, in time and memory proportional to the corpus and the step."""

    def __init__(
        self,
        samples_per_shard_by_source: Sequence[Sequence[int]],
        weights: Sequence[float] | None,
        seed: int,
        num_lanes: int,
        window: int,
    ) -> None:
        self.sources = [list(sizes) for sizes in samples_per_shard_by_source]
        self.weights = [float(sum(sizes)) for sizes in self.sources] if weights is None else list(weights)
        self.seed, self.num_lanes, self.window = seed, num_lanes, window

    def address(self, step: int, slot: int, batch_size: int) -> Address:
        """The sample at `slot` of the global batch of `step`."""
        dealt: list[list[int]] = [[] for _ in range(self.num_lanes)]  # the slots' serial numbers, by lane
        if batch_size >= self.num_lanes:
            for serial in range((step + 1) * batch_size):
                dealt[serial % batch_size // (batch_size // self.num_lanes)].append(serial)
        else:
            for serial in range((step + 1) * batch_size):
                at_step, at_slot = divmod(serial, batch_size)
                lanes = self.num_lanes // batch_size
                dealt[at_slot * lanes + at_step % lanes].append(serial)
        wanted = step * batch_size + slot
        lane = next(lane for lane in range(self.num_lanes) if wanted in dealt[lane])
        return self.lane_draws(lane, dealt[lane].index(wanted) + 1)[-1]

    def lane_draws(self, lane: int, count: int) -> list[Address]:
        """The first `count` draws of a lane."""
        period = [int(source) for source in balanced_period(quotas(self.weights))]
        phase = lane * len(period) // self.num_lanes
        drawn = [0] * len(self.sources)
        result = []
        for turn in range(count):
            source = period[(phase + turn) % len(period)]
            epoch, order = 0, self.lane_epoch(source, lane, 0)
            rest = drawn[source]
            while rest >= len(order):
                rest -= len(order)
                epoch += 1
                order = self.lane_epoch(source, lane, epoch)
            shard, sample = order[rest]
            result.append(
                Address(
                    source=source,
                    shard=shard,
                    sample=sample,
                    epoch=epoch,
                    position=turn * self.num_lanes + lane,
                    lane=lane,
                    draw=drawn[source],
                )
            )
            drawn[source] += 1
        return result

    def lane_epoch(self, source: int, lane: int, epoch: int) -> list[tuple[int, int]]:
        """All (shard, sample) of one source's lane in one epoch, in order."""
        sizes = self.sources[source]
        order, rotation = draw_shard_order(self.seed, source, epoch, len(sizes), sum(sizes))
        everything = [(int(shard), sample) for shard in order for sample in range(sizes[shard])]
        everything = everything[rotation:] + everything[:rotation]
        first, stop = lane * len(everything) // self.num_lanes, (lane + 1) * len(everything) // self.num_lanes
        mine, result = everything[first:stop], []
        for window, start in enumerate(range(0, len(mine), self.window)):
            members = mine[start : start + self.window]
            shuffle = draw_window_order(self.seed, source, epoch, lane, window, len(members))
            result += [members[index] for index in shuffle]
        return result
