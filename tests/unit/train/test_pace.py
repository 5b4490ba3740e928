from __future__ import annotations

import pytest

from cclm.train.speed import Pace

MS = 1000


def test_a_rank_that_waits_for_data_is_not_blamed_for_what_it_does_otherwise() -> None:
    """The second waits 300 ms for data, the third comes 200 ms late by itself: the first waits for both."""
    pace = Pace()
    for _ in range(2):
        pace.hear([(100 * MS, 200 * MS), (300 * MS, 0), (100 * MS, 0)])
    found = pace.numbers()
    assert found == {
        "speed/data_slowest_rank": 1.0,
        "speed/data_slowest_s": pytest.approx(0.2),
        "speed/data_slowest_ratio": pytest.approx(3.0),
        "speed/late_rank": 2.0,
        "speed/late_s": pytest.approx(0.2),
    }
    assert pace.numbers() == {}, "the window is over"


def test_one_process_keeps_nobody_waiting() -> None:
    assert Pace().numbers() == {}


def test_an_agreement_is_timed() -> None:
    times = iter([9.0, 9.25, 10.0, 10.5])
    pace = Pace(clock=lambda: next(times))
    with pace.fetching():
        pass
    with pace.agreeing():
        pass
    assert pace.own == [250 * MS, 500 * MS]
