from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.data.mixture import LONGEST_PERIOD, Mixture, balanced_period, quotas
from cclm.errors import ConfigError


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1.0], [1]), ([0.6, 0.4], [3, 2]), ([1.0, 2.0, 1.0], [1, 2, 1]), ([0.1, 0.2, 0.7], [1, 2, 7])],
)
def test_simple_proportions_are_exact(weights: list[float], expected: list[int]) -> None:
    assert quotas(weights) == expected


def test_odd_proportions_are_rounded_and_nobody_is_left_out() -> None:
    counts = quotas([2_838_361.0, 19_000_017.0, 3.0])
    assert sum(counts) == pytest.approx(LONGEST_PERIOD, abs=1)
    assert counts[2] == 1
    assert counts[1] / sum(counts) == pytest.approx(19_000_017 / 21_838_381, abs=1 / LONGEST_PERIOD)


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [float("nan")], [float("inf")], [-1.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="expected weights of 0 or more"):
        quotas(weights)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_every_prefix_of_a_period_holds_the_fair_share(counts: list[int]) -> None:
    order = balanced_period(counts)
    total = sum(counts)
    drawn = np.cumsum(order[:, None] == np.arange(len(counts))[None, :], axis=0)
    fair = np.arange(1, total + 1)[:, None] * np.array(counts)[None, :] / total
    bound = 1 - 1 / max(1, 2 * len(counts) - 2)  # Tijdeman's, ½ for two sources
    assert np.abs(drawn - fair).max() <= bound + 1e-9
    assert drawn[-1].tolist() == counts


def test_the_count_before_a_draw_is_the_number_of_draws_before_it() -> None:
    mixture = Mixture([3.0, 1.0, 2.0], 4)
    for lane in range(4):
        drawn: Counter[int] = Counter()
        for turn in range(40):
            source, before = mixture.pick(lane, turn)
            assert before == drawn[source]
            drawn[source] += 1


def test_counts_go_on_when_the_weights_change() -> None:
    mixture = Mixture([3.0, 1.0], 2)
    mixture.change([0.0, 1.0], [5, 6])
    mixture.change([1.0, 1.0], [9, 9])
    for lane in range(2):
        drawn = [0, 0]
        for turn in range(30):
            assert mixture.drawn(lane, turn).tolist() == drawn
            source, before = mixture.pick(lane, turn)
            assert before == drawn[source]
            drawn[source] += 1
        first = [mixture.pick(lane, turn)[0] for turn in range([5, 6][lane], 9)]
        assert set(first) == {1}
        assert abs(drawn[0] - ([5, 6][lane] * 0.75 + 21 * 0.5)) <= 1


def test_lanes_start_at_different_places_of_the_period() -> None:
    assert len({Mixture([0.5, 0.5], 2).pick(lane, 0)[0] for lane in range(2)}) == 2
