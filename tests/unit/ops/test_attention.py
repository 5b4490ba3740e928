"""Attention and dropout that keep little, against torch's own: values, gradients, random numbers, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cclm.ops import attention
from cclm.ops.attention import byte_dropout, recomputed_attention
from cclm.ops.choice import math_attention

SHAPES = [(1, 1, 1, 1, 4), (2, 3, 5, 5, 8), (3, 2, 1, 7, 4), (2, 1, 6, 2, 3)]
"""Sequences, heads, queries, keys, width."""
MASKS = ("none", "boolean", "an empty row", "bias", "bias of all heads")


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Views of one tensor, heads behind tokens, as layers give them."""
    batch, heads, queries, keys, width = shape
    lengths = (queries, keys, keys)
    rows = [torch.randn(batch, length, heads * width, dtype=dtype) for length in lengths]
    return [row.view(batch, -1, heads, width).transpose(1, 2).requires_grad_() for row in rows]


def make_mask(kind: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor | None:
    batch, heads, queries, keys, _ = shape
    if kind == "none":
        return None
    if kind.startswith("bias"):
        size = (1, heads if "all" in kind else 1, queries, keys)
        return torch.randn(size, dtype=dtype, requires_grad=True)
    mask = torch.rand(batch, 1, 1, keys) < 0.5
    mask[..., 0] = True
    if kind == "an empty row":
        mask[0] = False
    return mask


Function = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]


def both(function: Function, parts: list[Tensor], mask: Tensor | None, dropout: float) -> list[Tensor]:
    """Values and gradients."""
    leaves = [*parts, *([mask] if mask is not None and mask.requires_grad else [])]
    torch.manual_seed(3)
    found = function(*parts, mask, dropout)
    weight = torch.arange(found.numel(), dtype=found.dtype).cos().view_as(found)
    return [found.detach(), *torch.autograd.grad((found * weight).sum(), leaves)]


@contextmanager
def only_ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without torch's kernels."""
    with monkeypatch.context() as patch:
        patch.setattr(attention, "functional", None)
        yield


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_gradients_and_draws_are_those_of_torch(
    shape: tuple[int, ...], kind: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, mask = inputs(shape), make_mask(kind, shape)
    is_ours = dropout > 0 or (mask is not None and mask.requires_grad)
    if is_ours:
        with only_ours(monkeypatch):
            found = both(recomputed_attention, parts, mask, dropout)
    else:
        found = both(recomputed_attention, parts, mask, dropout)
    for ours, reference in zip(found, both(math_attention, parts, mask, dropout), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_bfloat16() -> None:
    shape = (2, 3, 5, 7, 8)
    parts, mask = inputs(shape, torch.bfloat16), make_mask("bias", shape, torch.bfloat16)
    wide = [part.detach().double().requires_grad_() for part in parts]
    assert mask is not None
    reference = both(math_attention, wide, mask.detach().double().requires_grad_(), 0.0)
    for ours, exact in zip(both(recomputed_attention, parts, mask, 0.0), reference, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), exact, rtol=0.05, atol=0.05)  # 8 bits of mantissa, sums of seven


def kept_bytes(function: Callable[[], Tensor]) -> int:
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_queries_keys_values_and_a_byte_for_each_probability_are_kept() -> None:
    shape = (2, 3, 32, 32, 8)
    parts = inputs(shape, torch.float32)
    inputs_bytes, cells = 3 * 2 * 3 * 32 * 8 * 4, 2 * 3 * 32 * 32
    assert kept_bytes(lambda: recomputed_attention(*parts, None, 0.1)) == inputs_bytes + cells
    assert kept_bytes(lambda: math_attention(*parts, None, 0.1)) > inputs_bytes + 8 * cells


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_is_that_of_torch_bit_by_bit(dtype: torch.dtype) -> None:
    rows = torch.randn(7, 33, dtype=dtype, requires_grad=True)
    found = []
    for function in (byte_dropout, functional.dropout):
        torch.manual_seed(1)
        dropped = function(rows, 0.3, True)
        found.append((dropped, *torch.autograd.grad(dropped.square().sum(), [rows])))
    assert all(torch.equal(ours, reference) for ours, reference in zip(*found, strict=True))
    assert kept_bytes(lambda: byte_dropout(rows, 0.3)) == rows.numel()
    assert byte_dropout(rows, 0.3, training=False) is rows
