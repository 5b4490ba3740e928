"""The benchmark of the agreement times what a step really sends, on two ranks."""

from __future__ import annotations

import pytest

from benchmarks.agreement import run


@pytest.mark.slow
def test_its_shares_are_of_one_step() -> None:
    figures = run(2, 1)
    assert figures["num_modules"] > 50
    assert 0 < figures["agreement_s"] < figures["step_s"]
    assert 0 < figures["agreement_share"] < 1 and 0 <= figures["order_share"] < 1
