"""Both sides of the benchmark of checkpoints save the same state, so that their ratio means something."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.checkpoint import WIDTH, measure
from cclm.engine.fragments import share_path
from cclm.run.checkpoints import complete_checkpoints


@pytest.mark.slow
def test_the_share_is_of_the_same_bytes(tmp_path: Path) -> None:
    figures = measure(tmp_path, 1.0, 1)
    assert figures["state_gb"] * 1e9 > 3 * 4 * WIDTH**2, "weights and two moments"
    assert figures["blocking_share"] == figures["blocking_s"] / figures["synchronous_s"]
    assert figures["total_s"] >= figures["blocking_s"] > 0 and figures["slowdown"] > 0
    (last,) = complete_checkpoints(tmp_path)
    assert share_path(last, 0).stat().st_size > 3 * 4 * WIDTH**2
