"""A hundred hard steps on two ranks, as one process does them; `make faults` does a thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks.mixed_steps import difference, drawn

STEPS = 100


@pytest.mark.slow
def test_ranks_do_not_hang_and_compute_the_plain_engines_numbers(tmp_path: Path, one_thread: None) -> None:
    assert len({drawn(step) for step in range(STEPS)}) == 5 * 2 * 3, "each way, in each schedule and view"
    assert difference(tmp_path, STEPS, 1e-5) == ""
