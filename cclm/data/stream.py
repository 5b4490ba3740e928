"""Position → sample: which sample stands at (step, index), as arithmetic without state or files.

    source, epoch:  shards in a seeded order ──── concatenated ──── rotated by a seeded offset
                    |  lane 0  |  lane 1  |  lane 2  |  lane 3  |       num_lanes equal ranges
                    |win|win|wi|                                        shuffled inside windows
    lane:           its sources interleaved by exact proportions (`Mixture`), which may change over the steps
    global batch:   draws from all lanes in turn (`LaneAssignment`); index order = lane order

The number of lanes is part of the config; the number of ranks appears nowhere. A rank that serves a contiguous range
of indices reads a contiguous range of lanes, and therefore only these lanes' shards. Nothing has to divide anything: a
source with fewer samples than lanes is taken several times over before it is cut into lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cclm.data.mix_plan import FOREVER, base_weights, plan_mixture
from cclm.data.mixture import LaneAssignment
from cclm.data.options import MixConfig, SourceConfig
from cclm.data.seeding import Purpose, keyed_generator
from cclm.errors import ConfigError, DataError

Lengths = Callable[[int, NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]
"""(source, shards, samples) → a number for each sample that grows with the length of its text."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a sample is stored, and which draw of the stream it is."""

    source: int
    shard: int
    sample: int
    epoch: int
    """How many times this lane of the source was read through before."""
    position: int
    """Serial number of the draw in the stream: turn · num_lanes + lane. Unique over the run: seeds the sample."""
    lane: int
    draw: int
    """How many draws the lane took from this source before."""


def lane_bounds(num_samples: int, num_lanes: int, lane: int) -> tuple[int, int]:
    """First and one past the last position of a lane in its source's concatenation."""
    return lane * num_samples // num_lanes, (lane + 1) * num_samples // num_lanes


def passes(num_samples: int, num_lanes: int) -> int:
    """How many times a source stands in what is cut into lanes: once, or so often that every lane has a sample."""
    return -(-num_lanes // num_samples)


class Stream:
    """An endless, seeded, mixed and shuffled order of samples that can be entered anywhere.

    Args:
        samples_per_shard_by_source: in the order of `sources`.
        window: neighbouring samples of a lane that are shuffled together; more mix better, and need more open shards.
        length_buckets: windows are put into so many buckets of similar length, the same bucket in every lane.
        lengths: of samples; needed for more than one bucket.

    Raises:
        ConfigError: for an empty source or bad weights.
    """

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
        assert length_buckets == 1 or lengths is not None, "buckets need lengths"
        self._length_buckets, self._lengths = length_buckets, lengths
        self.sizes = [np.asarray(sizes, dtype=np.int64) for sizes in samples_per_shard_by_source]
        self.totals = [int(sizes.sum()) for sizes in self.sizes]
        self.seed, self.num_lanes, self.window, self.batch_size = seed, num_lanes, window, batch_size
        mix = mix or MixConfig()
        _check(self.totals, sources)
        self.lane_totals = [total * passes(total, num_lanes) for total in self.totals]
        self.assignment = LaneAssignment(batch_size, num_lanes)
        settings = list(sources.values())
        weighted = [(stage.start_step, stage.weights) for stage in mix.schedule if stage.weights is not None]
        later = [(start_step, [weights[name] for name in sources]) for start_step, weights in weighted]
        weights = base_weights(self.totals, settings, mix)
        self.mixture, self.end_step = plan_mixture(weights, later, self._limits(settings), self.assignment)
        # Lanes are at most one epoch apart: a few orders are enough.
        self._shard_order = lru_cache(maxsize=4 * len(self.sizes))(self._draw_shard_order)
        self._window_order = lru_cache(maxsize=2 * num_lanes * len(self.sizes))(self._draw_window_order)

    def address(self, step: int, index: int) -> Address:
        """The sample of an index of a step; pure, O(log shards) (DataError `sources_used_up`, from `end_step` on)."""
        if self.end_step is not None and step >= self.end_step:
            raise DataError(
                reason="sources_used_up",
                expected=f"at most {self.end_step} steps of these sources",
                got=f"step {step}",
                do="Shorten the run, or raise `mix.max_epochs`.",
            )
        lane, turn = self.assignment.lane_turn(step, index)
        source, draw = self.mixture.pick(lane, turn)
        found = self._locate(source, lane, draw, 0, turn * self.num_lanes + lane)
        assert found is not None, "a window has a first sample"
        return found

    def replacement(self, address: Address, attempt: int) -> Address | None:
        """What to read instead of a broken sample: the attempt-th next one of its window, round it; None at the end.

        Keeps the position, so the replacement is seeded as the sample it stands in for.
        """
        return self._locate(address.source, address.lane, address.draw, attempt, address.position)

    def _locate(self, source: int, lane: int, draw: int, skip: int, position: int) -> Address | None:
        """The sample of a lane's draw from a source, or the skip-th one after it; None: its window has not so many."""
        start, stop = lane_bounds(self.lane_totals[source], self.num_lanes, lane)
        epoch, offset = divmod(draw, stop - start)
        window, inside = divmod(offset, self.window)
        size = min(self.window, stop - start - window * self.window)
        if skip >= size:
            return None
        shuffled = int(self._window_order(source, epoch, lane, window, size)[(inside + skip) % size])
        shard, sample = self._stored(source, epoch, start + window * self.window + shuffled)
        return Address(
            source=source, shard=int(shard), sample=int(sample), epoch=epoch, position=position, lane=lane, draw=draw
        )

    def _stored(self, source: int, epoch: int, places: Any) -> tuple[Any, Any]:
        """Shard and sample at a place of what is cut into lanes; or arrays of them, at an array of places."""
        order, ends, rotation = self._shard_order(source, epoch)
        places = (places + rotation) % self.totals[source]  # of any pass
        ranks = np.searchsorted(ends, places, side="right")
        return order[ranks], places - ends[ranks] + self.sizes[source][order[ranks]]

    def _limits(self, sources: Sequence[SourceConfig]) -> NDArray[np.int64]:
        limits = np.full((len(self.totals), self.num_lanes), FOREVER, dtype=np.int64)
        for source, settings in enumerate(sources):
            if settings.max_epochs is not None:
                bounds = [lane_bounds(self.lane_totals[source], self.num_lanes, lane) for lane in range(self.num_lanes)]
                share = settings.max_epochs / passes(self.totals[source], self.num_lanes)
                limits[source] = [int(share * (stop - start)) for start, stop in bounds]
        return limits

    def _draw_shard_order(self, source: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Shards in this epoch's order, where each ends in the concatenation, and the rotation."""
        order, rotation = draw_shard_order(self.seed, source, epoch, len(self.sizes[source]), self.totals[source])
        return order, np.cumsum(self.sizes[source][order]), rotation

    def _draw_window_order(self, source: int, epoch: int, lane: int, window: int, size: int) -> NDArray[np.int64]:
        drawn = draw_window_order(self.seed, source, epoch, lane, window, size)
        if self._lengths is None or self._length_buckets == 1:
            return drawn
        start, _ = lane_bounds(self.lane_totals[source], self.num_lanes, lane)
        lengths = self._lengths(source, *self._stored(source, epoch, start + window * self.window + np.arange(size)))
        return bucketed(drawn, lengths, draw_bucket_order(self.seed, source, epoch, window, self._length_buckets))


def draw_shard_order(seed: int, source: int, epoch: int, num_shards: int, total: int) -> tuple[NDArray[np.int64], int]:
    """The seeded order of a source's shards in one epoch, and by how many samples their concatenation is rotated."""
    generator = keyed_generator(seed, Purpose.SHARDS, source, (0, 0, epoch))
    return generator.permutation(num_shards), int(generator.integers(total))


def draw_window_order(seed: int, source: int, epoch: int, lane: int, window: int, size: int) -> NDArray[np.int64]:
    """The seeded order of the samples in one window."""
    return keyed_generator(seed, Purpose.WINDOW, source, (window, lane, epoch)).permutation(size)


def draw_bucket_order(seed: int, source: int, epoch: int, window: int, buckets: int) -> NDArray[np.int64]:
    """The seeded order of a window's length buckets: the same in every lane, so that a batch's lengths are alike."""
    return keyed_generator(seed, Purpose.BUCKETS, source, (window, 0, epoch)).permutation(buckets)


def bucketed(
    drawn: NDArray[np.int64], lengths: NDArray[np.int64], bucket_order: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A window's random order, rearranged: bucket after bucket of similar lengths, in the random order inside each."""
    by_length = np.argsort(lengths[drawn], kind="stable")
    buckets = np.array_split(by_length, len(bucket_order))
    order: NDArray[np.int64] = drawn[np.concatenate([np.sort(buckets[bucket]) for bucket in bucket_order])]
    return order


def _check(totals: Sequence[int], sources: Mapping[str, SourceConfig]) -> None:
    empty = [name for name, total in zip(sources, totals, strict=True) if total < 1]
    if not totals or empty:
        raise ConfigError(
            expected="at least one source, and no empty one",
            got=f"no samples in {', '.join(empty)}" if empty else "none",
            do="Leave the empty set out of `sources`.",
        )
