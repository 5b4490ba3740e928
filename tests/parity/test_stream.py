"""`Stream` (arithmetic) against `PlainStream` (lists and loops), and what both promise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cclm.data.mixture import LaneAssignment
from cclm.data.options import MixConfig, MixStage, SourceConfig
from cclm.data.stream import Address, Stream
from cclm.errors import ConfigError, DataError
from tests.parity.plain_stream import PlainStream, drawn_before

sizes_of_sources = st.lists(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).map(lambda sizes: [*sizes, 1]), min_size=1, max_size=3
)
weight = st.sampled_from([0.5, 1.0, 2.0, 3.7])
NAMES = "abcdefgh"


def named(
    count: int,
    weights: Sequence[float] | None = None,
    max_epochs: Sequence[float | None] | None = None,
    repeats: Sequence[float] | None = None,
) -> dict[str, SourceConfig]:
    """So many sources called a, b, …"""
    return {
        NAMES[number]: SourceConfig(
            path=NAMES[number],
            weight=None if weights is None else weights[number],
            max_epochs=None if max_epochs is None else max_epochs[number],
            repeat=1.0 if repeats is None else repeats[number],
        )
        for number in range(count)
    }


def stream_of(
    sizes: list[list[int]],
    weights: Sequence[float] | None,
    seed: int,
    num_lanes: int,
    window: int,
    batch_size: int,
    *more: Any,
) -> Stream:
    """A stream of sources called a, b, …"""
    return Stream(sizes, named(len(sizes), weights), seed, num_lanes, window, batch_size, *more)


def lengths(source: int, shards: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.int64]:
    return (source + 7 * shards + 5 * samples) % 11


def mixes(num_sources: int) -> st.SearchStrategy[MixConfig]:
    weights = st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, 3.0])] * num_sources).filter(any)
    stages = st.lists(st.tuples(st.integers(0, 9), weights), max_size=2, unique_by=lambda pair: pair[0])
    return st.builds(
        lambda stages, temperature: MixConfig(
            schedule=tuple(
                MixStage(start_step=step, weights=dict(zip(NAMES, weights, strict=False)))
                for step, weights in sorted(stages)
            ),
            temperature=temperature,
        ),
        stages,
        st.sampled_from([1.0, 3.0]),
    )


def settings_of(num_sources: int) -> st.SearchStrategy[dict[str, SourceConfig]]:
    each = st.lists(weight, min_size=num_sources, max_size=num_sources)
    epochs = st.lists(st.sampled_from([None, 1, 1.5, 3]), min_size=num_sources, max_size=num_sources)
    return st.builds(
        lambda weights, max_epochs, repeats: named(num_sources, weights, max_epochs, repeats),
        st.none() | each,
        st.none() | epochs,
        st.none() | each,
    )


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(
    sizes=sizes_of_sources,
    seed=st.integers(0, 2**64 - 1),
    num_lanes=st.integers(1, 7),
    window=st.integers(1, 12),
    batch_size=st.integers(1, 9),
    last_step=st.integers(0, 12),
    data=st.data(),
)
def test_the_address_is_the_twins(
    sizes: list[list[int]],
    seed: int,
    num_lanes: int,
    window: int,
    batch_size: int,
    last_step: int,
    data: st.DataObject,
) -> None:
    given_sources, mix = data.draw(settings_of(len(sizes))), data.draw(mixes(len(sizes)))
    more = (data.draw(st.integers(1, 4)), lengths)
    stream = Stream(sizes, given_sources, seed, num_lanes, window, batch_size, mix, *more)
    plain = PlainStream(sizes, given_sources, seed, num_lanes, window, batch_size, mix, *more)
    step = -1
    for step, expected in enumerate(plain.steps()):
        assert [stream.address(step, index) for index in range(batch_size)] == expected
        if step == last_step:
            return
    assert stream.end_step == step + 1
    with pytest.raises(DataError) as caught:
        stream.address(step + 1, 0)
    assert caught.value.reason == "sources_used_up"


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(sizes=sizes_of_sources, seed=st.integers(0, 99), num_lanes=st.integers(1, 9), window=st.integers(1, 12))
def test_every_sample_stands_equally_often_in_every_lane_epoch(
    sizes: list[list[int]], seed: int, num_lanes: int, window: int
) -> None:
    stream = stream_of(sizes, None, seed, num_lanes, window, num_lanes)
    total = sum(max(sum(source), num_lanes) for source in sizes)
    seen: Counter[tuple[int, int, int, int]] = Counter()
    for step in range(4 * total):
        for index in range(num_lanes):
            address = stream.address(step, index)
            seen[address.source, address.epoch, address.shard, address.sample] += 1
    for source, shards in enumerate(sizes):
        for epoch in (0, 1):
            expected = {(shard, sample) for shard, size in enumerate(shards) for sample in range(size)}
            found = {key[2:]: count for key, count in seen.items() if key[:2] == (source, epoch)}
            assert set(found) == expected
            assert set(found.values()) == {-(-num_lanes // sum(shards))}  # once, unless there are too few for the lanes


@given(batch_size=st.integers(1, 40), num_lanes=st.integers(1, 40), step=st.integers(0, 50))
def test_lanes_are_assigned_evenly_whatever_the_numbers(batch_size: int, num_lanes: int, step: int) -> None:
    assignment = LaneAssignment(batch_size, num_lanes)
    given_before = [assignment.turns_before(step, lane) for lane in range(num_lanes)]
    assert sum(given_before) == step * batch_size and max(given_before) - min(given_before) <= 1
    turns = list(given_before)
    for index in range(batch_size):
        lane, turn = assignment.lane_turn(step, index)
        assert turn == turns[lane]
        turns[lane] += 1
    assert turns == [assignment.turns_before(step + 1, lane) for lane in range(num_lanes)]


def test_a_batch_holds_the_same_samples_for_any_number_of_ranks() -> None:
    whole_stream = stream_of([[5, 7, 9], [20]], [1.0, 2.0], 3, 4, 6, 16)
    whole = [whole_stream.address(9, index) for index in range(16)]
    for world_size in (1, 2, 3, 4, 5, 8):
        ranks: list[Address] = []
        lanes_read: list[set[int]] = []
        for rank in range(world_size):
            own = stream_of([[5, 7, 9], [20]], [1.0, 2.0], 3, 4, 6, 16)  # a fresh process without any history
            indices = range(rank * 16 // world_size, (rank + 1) * 16 // world_size)
            mine = [own.address(9, index) for index in indices]
            ranks += mine
            lanes_read.append({address.lane for address in mine})
            assert lanes_read[-1] <= set(lanes_of(own.assignment, indices))
        assert ranks == whole
        if world_size in (1, 2, 4):
            assert sum(map(len, lanes_read)) == 4  # no lane is read by two ranks


def lanes_of(assignment: LaneAssignment, indices: range) -> range:
    """Return the lanes that neighbouring indices may read: those of their blocks."""
    num_blocks = math.gcd(assignment.batch_size, assignment.num_lanes)
    per_block, lanes = assignment.batch_size // num_blocks, assignment.num_lanes // num_blocks
    return range(indices.start // per_block * lanes, (indices.stop - 1) // per_block * lanes + lanes)


def test_a_slot_owns_its_lanes_when_lanes_outnumber_samples() -> None:
    stream = stream_of([[40]], None, 0, 8, 4, 2)
    lanes = {stream.address(step, 1).lane for step in range(12)}
    assert lanes == set(lanes_of(stream.assignment, range(1, 2))) == {4, 5, 6, 7}


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(0.05, 5.0), min_size=2, max_size=4),
    num_lanes=st.integers(1, 9),
    turns=st.integers(1, 400),
)
def test_proportions_hold_in_every_lane(weights: list[float], num_lanes: int, turns: int) -> None:
    stream = stream_of([[50]] * len(weights), weights, 0, num_lanes, 10, num_lanes)
    counts = stream.mixture.counts
    for lane in range(num_lanes):
        drawn = Counter(stream.mixture.pick(lane, turn)[0] for turn in range(turns))
        for source, count in enumerate(counts):
            error = abs(drawn[source] - turns * count / sum(counts))
            # one draw at the start of the lane's piece of the period and one at its end, each below 1 (½ for two)
            assert error <= 1 if len(counts) == 2 else error < 2
            assert count / sum(counts) == pytest.approx(weights[source] / sum(weights), abs=1e-3)


def test_one_draw_from_every_lane_is_already_mixed() -> None:
    stream = stream_of([[100]] * 3, [2.0, 1.0, 1.0], 0, 8, 10, 8)
    for step in range(20):
        assert Counter(stream.address(step, index).source for index in range(8)) == {0: 4, 1: 2, 2: 2}


def test_buckets_make_the_lengths_of_a_batch_alike() -> None:
    table = np.random.default_rng(0).integers(1, 100, 512)
    spread = []
    for buckets in (1, 8):
        stream = stream_of([[512]], None, 3, 4, 64, 8, None, buckets, lambda source, shards, samples: table[samples])
        batches = [[stream.address(step, index).sample for index in range(8)] for step in range(64)]
        assert sorted(sum(batches, [])) == list(range(512))  # noqa: RUF017
        spread.append(np.mean([table[batch].max() - table[batch].mean() for batch in batches]))
    assert spread[1] < 0.3 * spread[0]


def test_epochs_and_seeds_change_the_order() -> None:
    stream, other = stream_of([[30, 30]], None, 1, 2, 8, 2), stream_of([[30, 30]], None, 2, 2, 8, 2)
    first = [(a.shard, a.sample) for a in (stream.address(step, 0) for step in range(30))]
    second = [(a.shard, a.sample) for a in (stream.address(step, 0) for step in range(30, 60))]
    assert first != second
    assert first != [(a.shard, a.sample) for a in (other.address(step, 0) for step in range(30))]


def test_any_step_is_reached_without_the_ones_before() -> None:
    stream = stream_of([[1000] * 1000], None, 1, 64, 100, 128)
    assert stream.address(10**9, 17).epoch == (2 * 10**9 + 1) // (10**6 // 64)


def test_a_replacement_comes_from_the_same_window_and_keeps_the_position() -> None:
    stream = stream_of([[21]], None, 5, 2, 4, 2)
    address = stream.address(3, 0)
    window = {(a.shard, a.sample) for a in (stream.address(step, 0) for step in range(4))}
    others = [stream.replacement(address, attempt) for attempt in range(1, 4)]
    assert {(a.shard, a.sample) for a in others if a} | {(address.shard, address.sample)} == window
    assert all(a and a.position == address.position for a in others)
    assert stream.replacement(address, 4) is None


def test_positions_are_unique_and_pickling_changes_nothing() -> None:
    stream = stream_of([[9, 9], [9]], [1.0, 3.0], 5, 3, 4, 6)
    addresses = [stream.address(step, index) for step in range(20) for index in range(6)]
    assert len({address.position for address in addresses}) == 120


@pytest.mark.parametrize(
    ("sizes", "weights", "num_lanes", "window", "word"),
    [
        ([[3], [0, 0]], None, 4, 1, "no empty one"),
        ([], None, 1, 1, "at least one source"),
        ([[3], [3]], [0.0, 0.0], 1, 1, "weights of 0 or more"),
        ([[3]], [-1.0], 1, 1, "weights of 0 or more"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(
    sizes: list[list[int]], weights: list[float] | None, num_lanes: int, window: int, word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        stream_of(sizes, weights, 0, num_lanes, window, 4)


def test_sources_are_used_up_after_their_epochs() -> None:
    stream = Stream([[10, 14], [6, 6]], named(2, [1.0, 1.0], max_epochs=[2, 1]), 0, 4, 5, 8)
    assert stream.end_step is not None
    first, second = drawn_before(stream, stream.end_step)
    assert 48 - 8 < first <= 48 and 12 - 8 < second <= 12  # what is left is less than one step
    seen = Counter(
        (a.source, a.shard, a.sample)
        for k in range(stream.end_step)
        for a in map(lambda i: stream.address(k, i), range(8))
    )
    assert max(count for key, count in seen.items() if key[0] == 0) == 2
    assert max(count for key, count in seen.items() if key[0] == 1) == 1


def test_temperature_and_repeats_set_the_proportions() -> None:
    def shares(mix: MixConfig, repeats: Sequence[float] | None = None) -> list[float]:
        stream = Stream([[1000], [10]], named(2, repeats=repeats), 0, 1, 10, 1, mix)
        drawn = drawn_before(stream, 4096 * 101)
        return [count / sum(drawn) for count in drawn]

    assert shares(MixConfig()) == pytest.approx([100 / 101, 1 / 101], abs=1e-4)
    assert shares(MixConfig(temperature=2.0)) == pytest.approx([10 / 11, 1 / 11], abs=1e-4)
    assert shares(MixConfig(), [1.0, 100.0]) == pytest.approx([0.5, 0.5], abs=1e-4)
    assert shares(MixConfig(temperature=1e9)) == pytest.approx([0.5, 0.5], abs=1e-4)


def test_a_schedule_changes_the_proportions_at_its_step() -> None:
    stages = (
        MixStage(start_step=10, weights={"b": 3.0, "a": 1.0}),
        MixStage(start_step=20, weights={"a": 1.0, "b": 0.0}),
    )
    stream = stream_of([[500], [500]], [1.0, 0.0], 0, 4, 10, 8, MixConfig(schedule=stages))
    assert drawn_before(stream, 10) == [80, 0]
    assert drawn_before(stream, 20) == [100, 60]
    assert drawn_before(stream, 30) == [180, 60]
    assert {stream.address(19, index).source for index in range(8)} == {0, 1}
    assert {stream.address(20, index).source for index in range(8)} == {0}
