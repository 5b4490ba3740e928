"""The slow twin of `Stream`: writes every epoch down as a list and deals it out, draw by draw, from the beginning.

It shares with `Stream` only the seeded shuffles themselves and the order of one period; concatenation, lanes, windows,
mixing, schedules, limits and epochs are plain loops.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cclm.data.mix_plan import base_weights
from cclm.data.mixture import balanced_period, quotas
from cclm.data.options import MixConfig, SourceConfig
from cclm.data.stream import Address, Lengths, Stream, draw_bucket_order, draw_shard_order, draw_window_order


class _Dealt:
    """What was assigned so far."""

    def __init__(self, num_lanes: int, num_sources: int) -> None:
        self.turns = [0] * num_lanes
        self.since = [0] * num_lanes
        self.drawn = [[0] * num_sources for _ in range(num_lanes)]

    def copy(self) -> _Dealt:
        """A second one to try a step on."""
        return copy.deepcopy(self)


class PlainStream:
    """Same arguments and same `address` as `Stream`, in time and memory proportional to the corpus and the step."""

    def __init__(
        self,
        samples_per_shard_by_source: Sequence[Sequence[int]],
        sources: Mapping[str, SourceConfig],
        seed: int,
        num_lanes: int,
        window: int,
        batch_size: int,
        mix: MixConfig | None = None,
        length_buckets: int = 1,
        lengths: Lengths | None = None,
    ) -> None:
        self.length_buckets, self.lengths = length_buckets, lengths
        self.sources = [list(sizes) for sizes in samples_per_shard_by_source]
        self.mix = mix or MixConfig()
        self.names, self.settings = list(sources), list(sources.values())
        self.weights = base_weights([sum(sizes) for sizes in self.sources], self.settings, self.mix)
        self.seed, self.num_lanes, self.window, self.batch_size = seed, num_lanes, window, batch_size

    def address(self, step: int, index: int) -> Address:
        """The sample at `index` of the global batch of `step`."""
        for number, addresses in enumerate(self.steps()):
            if number == step:
                return addresses[index]
        raise IndexError(f"the sources end before step {step}")

    def steps(self) -> Iterator[list[Address]]:
        """The addresses of every step, from the first one on, until all sources are used up."""
        state, current, gone = _Dealt(self.num_lanes, len(self.sources)), list(self.weights), set[int]()
        for step in itertools.count():
            for stage in self.mix.schedule:
                if stage.start_step == step and stage.weights is not None:
                    current, state.since = [stage.weights[name] for name in self.names], list(state.turns)
            while True:
                left = [0.0 if source in gone else weight for source, weight in enumerate(current)]
                if not any(left):
                    return
                after = state.copy()
                addresses = [self._draw(block, left, after) for block in self._blocks()]
                over = self._overdrawn(after) - gone
                if not over:
                    break
                gone |= over
                state.since = list(state.turns)
            state = after
            yield addresses

    def _blocks(self) -> list[int]:
        """For each index, which block it belongs to: as many blocks as divide both numbers."""
        count = max(n for n in range(1, self.batch_size + 1) if self.batch_size % n == self.num_lanes % n == 0)
        return [index * count // self.batch_size for index in range(self.batch_size)]

    def _draw(self, block: int, weights: Sequence[float], state: _Dealt) -> Address:
        """The next draw of a block's next lane."""
        lanes = [lane for lane in range(self.num_lanes) if lane * (max(self._blocks()) + 1) // self.num_lanes == block]
        lane = min(lanes, key=lambda lane: state.turns[lane])
        period = [int(source) for source in balanced_period(quotas(weights))]
        turn = state.turns[lane]
        source = period[(lane * len(period) // self.num_lanes + turn - state.since[lane]) % len(period)]
        draw = state.drawn[lane][source]
        epoch, rest, order = 0, draw, self.lane_epoch(source, lane, 0)
        while rest >= len(order):
            epoch, rest = epoch + 1, rest - len(order)
            order = self.lane_epoch(source, lane, epoch)
        state.turns[lane] += 1
        state.drawn[lane][source] += 1
        shard, sample = order[rest]
        return Address(
            source=source,
            shard=shard,
            sample=sample,
            epoch=epoch,
            position=turn * self.num_lanes + lane,
            lane=lane,
            draw=draw,
        )

    def _overdrawn(self, state: _Dealt) -> set[int]:
        """The sources of which a lane took more than `max_epochs` allows."""
        found = set()
        for source, epochs in enumerate(settings.max_epochs for settings in self.settings):
            for lane, drawn in enumerate(state.drawn):
                times = self._times(source)
                if epochs is not None and drawn[source] > int(epochs / times * len(self.lane_epoch(source, lane, 0))):
                    found.add(source)
        return found

    def _times(self, source: int) -> int:
        """How often a source is written down before it is cut into lanes, so that every lane has a sample."""
        return next(times for times in itertools.count(1) if times * sum(self.sources[source]) >= self.num_lanes)

    def _by_length(
        self, source: int, epoch: int, window: int, members: list[tuple[int, int]], shuffle: list[int]
    ) -> list[int]:
        """The shuffled window, its length buckets one after another."""
        if self.lengths is None:
            return shuffle
        shards, samples = np.array(members).T
        length = self.lengths(source, shards, samples).tolist()
        by_length = sorted(range(len(shuffle)), key=lambda place: length[shuffle[place]])
        count, size = self.length_buckets, len(shuffle)
        sizes = [size // count + (bucket < size % count) for bucket in range(count)]
        buckets = [by_length[sum(sizes[:bucket]) : sum(sizes[: bucket + 1])] for bucket in range(count)]
        order = draw_bucket_order(self.seed, source, epoch, window, count)
        return [shuffle[place] for bucket in order for place in sorted(buckets[bucket])]

    def lane_epoch(self, source: int, lane: int, epoch: int) -> list[tuple[int, int]]:
        """All (shard, sample) of one source's lane in one epoch, in order."""
        sizes = self.sources[source]
        order, rotation = draw_shard_order(self.seed, source, epoch, len(sizes), sum(sizes))
        everything = [(int(shard), sample) for shard in order for sample in range(sizes[shard])] * self._times(source)
        everything = everything[rotation:] + everything[:rotation]
        first, stop = lane * len(everything) // self.num_lanes, (lane + 1) * len(everything) // self.num_lanes
        mine, result = everything[first:stop], []
        for window, start in enumerate(range(0, len(mine), self.window)):
            members = mine[start : start + self.window]
            shuffle = draw_window_order(self.seed, source, epoch, lane, window, len(members)).tolist()
            result += [members[index] for index in self._by_length(source, epoch, window, members, shuffle)]
        return result


def drawn_before(stream: Stream, step: int) -> list[int]:
    """How many samples of each source the steps before `step` draw."""
    lanes = range(stream.num_lanes)
    counts = [stream.mixture.drawn(lane, stream.assignment.turns_before(step, lane)) for lane in lanes]
    return [int(of_source) for of_source in np.sum(counts, axis=0)]
