"""What the contrastive loss computes with (tests/parity/test_contrastive.py compares its numbers)."""

from __future__ import annotations

import sys

import pytest
import torch

import cclm.ops
from cclm.ops import contrastive_operator as ops


def test_without_triton_the_walk_is_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is missing is no error."""
    monkeypatch.setitem(sys.modules, "cclm.ops.contrastive_kernels", None)  # importing it fails
    monkeypatch.delattr(cclm.ops, "contrastive_kernels", raising=False)
    ops.triton_kernels.cache_clear()
    try:
        assert ops.triton_kernels() is None
        assert ops.kernels_for(torch.zeros(2, 3)) is None
    finally:
        ops.triton_kernels.cache_clear()
