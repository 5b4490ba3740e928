"""A hundred hard steps on two ranks, as one process does them; `make faults` does a thousand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.ranks.mixed_steps import WAYS, difference, drawn

STEPS = 100


def test_every_way_and_schedule_comes_in_each_view() -> None:
    assert len(Counter(drawn(step) for step in range(STEPS))) == len(WAYS) * 2 * 3


@pytest.mark.slow
def test_ranks_do_not_hang_and_compute_the_plain_engines_numbers(tmp_path: Path, one_thread: None) -> None:
    assert difference(tmp_path, STEPS, 1e-5) == ""
