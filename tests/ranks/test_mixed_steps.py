"""Hard steps on two ranks, as one process does them: each once; `make faults` does a thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.left_to_long import left_to_long
from tests.ranks.mixed_steps import difference, drawn


@pytest.mark.slow
@pytest.mark.parametrize("steps", left_to_long([30, 100], 100))
def test_ranks_do_not_hang_and_compute_the_plain_engines_numbers(tmp_path: Path, one_thread: None, steps: int) -> None:
    assert len({drawn(step) for step in range(steps)}) == 5 * 2 * 3, "each way, in each schedule and view"
    assert difference(tmp_path, steps, 1e-5) == ""
