"""Fragments take their stretches of stored tensors; what does not fit is told."""

from __future__ import annotations

import pytest
import torch

from cclm.engine.fragments import Fragment, fill
from cclm.engine.stored_weights import StoredTensor
from cclm.errors import CheckpointError

STORED = {
    "w": StoredTensor(
        shape=(2, 5), dtype=torch.float32, parts=(torch.arange(6.0), torch.tensor([6.0, 7, 8, 9, -1, -1]))
    )
}


@pytest.mark.parametrize(("start", "size"), [(0, 10), (0, 3), (4, 4), (6, 4), (9, 1), (3, 0)])
def test_a_fragment_is_its_stretch(start: int, size: int) -> None:
    values = torch.full((size,), -5.0)
    fill([Fragment(name="w", shape=(2, 5), start=start, values=values)], STORED, "a checkpoint")
    assert torch.equal(values, torch.arange(10.0)[start : start + size])


@pytest.mark.parametrize(
    ("name", "shape", "told"), [("w", (5, 2), r"w of shape \(5, 2\), got shape \(2, 5\)"), ("v", (2, 5), "got no such")]
)
def test_what_does_not_fit_is_told(name: str, shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        fill([Fragment(name=name, shape=shape, start=0, values=torch.zeros(3))], STORED, "a checkpoint")
