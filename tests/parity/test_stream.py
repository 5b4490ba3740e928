"""`Stream` (arithmetic) against `PlainStream` (lists and loops), and what both promise."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.data.stream import Address, Stream, lane_turn
from cclm.data.stream_plain import PlainStream
from cclm.errors import ConfigError

sources = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=3)


def usable(sizes: list[list[int]], num_lanes: int) -> list[list[int]]:
    return [[*source, num_lanes] for source in sizes]


@settings(max_examples=60, deadline=None)
@given(
    sizes=sources,
    seed=st.integers(0, 2**64 - 1),
    num_lanes=st.integers(1, 6),
    window=st.integers(1, 12),
    ratio=st.integers(1, 3),
    small=st.booleans(),
    step=st.integers(0, 12),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.7]), min_size=3, max_size=3),
    data=st.data(),
)
def test_the_address_is_the_twins(
    sizes: list[list[int]],
    seed: int,
    num_lanes: int,
    window: int,
    ratio: int,
    small: bool,
    step: int,
    weights: list[float],
    data: st.DataObject,
) -> None:
    batch_size = num_lanes if small else num_lanes * ratio
    num_lanes = num_lanes * ratio if small else num_lanes
    sizes = usable(sizes, num_lanes)
    arguments = (sizes, weights[: len(sizes)], seed, num_lanes, window)
    slot = data.draw(st.integers(0, batch_size - 1))
    assert Stream(*arguments).address(step, slot, batch_size) == PlainStream(*arguments).address(step, slot, batch_size)


@settings(max_examples=30, deadline=None)
@given(sizes=sources, seed=st.integers(0, 99), num_lanes=st.integers(1, 5), window=st.integers(1, 12))
def test_every_sample_stands_once_in_every_lane_epoch(
    sizes: list[list[int]], seed: int, num_lanes: int, window: int
) -> None:
    sizes = usable(sizes, num_lanes)
    stream = Stream(sizes, None, seed, num_lanes, window)
    total = sum(map(sum, sizes))
    seen: Counter[tuple[int, int, int, int]] = Counter()
    for step in range(3 * total):
        for slot in range(num_lanes):
            address = stream.address(step, slot, num_lanes)
            seen[address.source, address.epoch, address.shard, address.sample] += 1
    for source, shards in enumerate(sizes):
        for epoch in (0, 1):
            expected = {(shard, sample) for shard, size in enumerate(shards) for sample in range(size)}
            found = {key[2:]: count for key, count in seen.items() if key[:2] == (source, epoch)}
            assert set(found) == expected
            assert set(found.values()) == {1}


def lanes_of_slots(slots: range, batch_size: int, num_lanes: int) -> range:
    """The lanes that a contiguous range of slots reads, over all steps."""
    first, _ = lane_turn(0, slots.start, batch_size, num_lanes)
    per_slot = max(1, num_lanes // batch_size)
    last, _ = lane_turn(0, slots.stop - 1, batch_size, num_lanes)
    return range(first, last + per_slot)


def test_a_batch_holds_the_same_samples_for_any_number_of_ranks() -> None:
    stream = Stream([[5, 7, 9], [20]], [1.0, 2.0], 3, 4, 6)
    whole = [stream.address(9, slot, 16) for slot in range(16)]
    for world_size in (1, 2, 4, 8):
        share = 16 // world_size
        lanes_read: list[set[int]] = []
        ranks: list[Address] = []
        for rank in range(world_size):
            own = Stream([[5, 7, 9], [20]], [1.0, 2.0], 3, 4, 6)  # a fresh process without any history
            mine = [own.address(9, slot, 16) for slot in range(rank * share, (rank + 1) * share)]
            ranks += mine
            lanes_read.append({address.lane for address in mine})
            assert lanes_read[-1] <= set(lanes_of_slots(range(rank * share, (rank + 1) * share), 16, 4))
        assert ranks == whole
        if world_size <= 4:
            assert sum(map(len, lanes_read)) == 4  # no lane is read by two ranks


def test_a_slot_owns_its_lanes_when_lanes_outnumber_samples() -> None:
    stream = Stream([[40]], None, 0, 8, 4)
    lanes = {stream.address(step, 1, 2).lane for step in range(12)}
    assert lanes == set(lanes_of_slots(range(1, 2), 2, 8)) == {4, 5, 6, 7}


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(0.05, 5.0), min_size=2, max_size=4),
    num_lanes=st.integers(1, 9),
    turns=st.integers(1, 400),
)
def test_proportions_hold_in_every_lane(weights: list[float], num_lanes: int, turns: int) -> None:
    stream = Stream([[50]] * len(weights), weights, 0, num_lanes, 10)
    counts = stream.mixture.counts
    for lane in range(num_lanes):
        drawn = Counter(stream.mixture.pick(lane, turn)[0] for turn in range(turns))
        for source, count in enumerate(counts):
            error = abs(drawn[source] - turns * count / sum(counts))
            # one draw at the start of the lane's piece of the period and one at its end, each below 1 (½ for two)
            assert error <= 1 if len(counts) == 2 else error < 2
            assert count / sum(counts) == pytest.approx(weights[source] / sum(weights), abs=1e-3)


def test_one_draw_from_every_lane_is_already_mixed() -> None:
    stream = Stream([[100]] * 3, [2.0, 1.0, 1.0], 0, 8, 10)
    for step in range(20):
        assert Counter(stream.address(step, slot, 8).source for slot in range(8)) == {0: 4, 1: 2, 2: 2}


def test_epochs_and_seeds_change_the_order() -> None:
    stream, other = Stream([[30, 30]], None, 1, 2, 8), Stream([[30, 30]], None, 2, 2, 8)
    first = [(a.shard, a.sample) for a in (stream.address(step, 0, 2) for step in range(30))]
    second = [(a.shard, a.sample) for a in (stream.address(step, 0, 2) for step in range(30, 60))]
    assert first != second
    assert first != [(a.shard, a.sample) for a in (other.address(step, 0, 2) for step in range(30))]


def test_any_step_is_reached_without_the_ones_before() -> None:
    stream = Stream([[1000] * 1000], None, 1, 64, 100)
    assert stream.address(10**9, 17, 128).epoch == (2 * 10**9 + 1) // (10**6 // 64)


def test_a_replacement_comes_from_the_same_window_and_keeps_the_position() -> None:
    stream = Stream([[21]], None, 5, 2, 4)
    address = stream.address(3, 0, 2)
    window = {(a.shard, a.sample) for a in (stream.address(step, 0, 2) for step in range(4))}
    others = [stream.replacement(address, attempt) for attempt in range(1, 4)]
    assert {(a.shard, a.sample) for a in others if a} | {(address.shard, address.sample)} == window
    assert all(a and a.position == address.position for a in others)
    assert stream.replacement(address, 4) is None


def test_positions_are_unique_and_pickling_changes_nothing() -> None:
    stream = Stream([[9, 9], [9]], [1.0, 3.0], 5, 3, 4)
    addresses = [stream.address(step, slot, 6) for step in range(20) for slot in range(6)]
    assert len({address.position for address in addresses}) == 120
    copy = pickle.loads(pickle.dumps(stream))
    assert [copy.address(step, slot, 6) for step in range(20) for slot in range(6)] == addresses


@pytest.mark.parametrize(
    ("sizes", "weights", "num_lanes", "window", "word"),
    [
        ([[3]], None, 4, 1, "every one of the 4 lanes"),
        ([], None, 1, 1, "at least one source"),
        ([[3]], [1.0, 2.0], 1, 1, "one weight for each"),
        ([[3]], [-1.0], 1, 1, "positive weights"),
        ([[3]], None, 1, 0, "at least 1"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(
    sizes: list[list[int]], weights: list[float] | None, num_lanes: int, window: int, word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        Stream(sizes, weights, 0, num_lanes, window)


def test_a_batch_size_without_common_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple or a divisor"):
        lane_turn(0, 0, 6, 4)
