"""Both sides of the benchmark of fused losses compute the same, so that their ratio means something."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks import ops


@pytest.mark.parametrize("name", ["masked_lm", "contrastive", "contrastive_hard", "contrastive_sigmoid"])
def test_both_sides_compute_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for size, value in {"WIDTH": 8, "CLASSES": 31, "SLOTS": 12, "ROWS": 16}.items():
        monkeypatch.setattr(ops, size, value)
    values: list[Tensor] = []
    for is_fused in (False, True):
        torch.manual_seed(0)
        loss, _ = ops.CASES[name](is_fused)
        values.append(loss())
    torch.testing.assert_close(*values)


def test_a_measurement_is_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "ROWS", 16)
    seconds, _ = ops.measure("contrastive", is_fused=True, repeats=2, threads=torch.get_num_threads())
    assert seconds > 0
