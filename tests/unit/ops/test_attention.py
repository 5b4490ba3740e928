"""Attention and dropout that keep little, against torch's own: values, gradients, random numbers, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from cclm.ops import attention
from cclm.ops.attention import Drops, recomputed_attention, redrawn_dropout
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


def drawn_as_ours(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """torch's attention with the probabilities that `recomputed_attention` drops, written out."""
    kept, wide = Drops(dropout), 1.0 if mask is None or mask.dtype != torch.bool else mask.any(-1, keepdim=True)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    shares = (scores.softmax(-1) * wide).nan_to_num()
    return (shares * kept.kept(shares.detach().flatten(0, 1)).view_as(shares) * kept.scale) @ value


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], kind: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, mask = inputs(shape), make_mask(kind, shape)
    is_ours = dropout > 0 or (mask is not None and mask.requires_grad)
    if is_ours:
        with only_ours(monkeypatch):
            found = both(recomputed_attention, parts, mask, dropout)
    else:
        found = both(recomputed_attention, parts, mask, dropout)
    slow = drawn_as_ours if dropout > 0 else math_attention
    for ours, reference in zip(found, both(slow, parts, mask, dropout), strict=True):
        torch.testing.assert_close(ours, reference.nan_to_num(), rtol=1e-12, atol=1e-12)


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


def test_only_queries_keys_and_values_are_kept() -> None:
    shape = (2, 3, 32, 32, 8)
    parts = inputs(shape, torch.float32)
    inputs_bytes, cells = 3 * 2 * 3 * 32 * 8 * 4, 2 * 3 * 32 * 32
    assert kept_bytes(lambda: recomputed_attention(*parts, None, 0.1)) == inputs_bytes
    assert kept_bytes(lambda: math_attention(*parts, None, 0.1)) > inputs_bytes + 8 * cells


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_drops_its_share_and_scales_the_rest(dtype: torch.dtype, probability: float) -> None:
    rows = torch.ones(300, 401, dtype=dtype, requires_grad=True)
    torch.manual_seed(1)
    dropped = redrawn_dropout(rows, probability)
    (grad,) = torch.autograd.grad(dropped.sum(), [rows])
    assert torch.equal(grad, dropped), "backward has other draws"
    kept = dropped != 0
    assert dropped[kept].unique().tolist() == pytest.approx([1 / (1 - probability)], rel=4e-3)
    deviation = (probability * (1 - probability) / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - probability)) < 4 * deviation
    for axis in (0, 1):  # no row and no column is better off, and neighbours know nothing of each other
        shares = kept.double().mean(axis)
        assert shares.std() == pytest.approx((probability * (1 - probability) / kept.shape[axis]) ** 0.5, rel=0.2)
    for step in (1, 2, 4, kept.shape[1]):
        both_kept = kept.flatten()[step:] & kept.flatten()[:-step]
        assert both_kept.double().mean() == pytest.approx((1 - probability) ** 2, abs=8 * deviation)
    assert not torch.equal(redrawn_dropout(rows, probability) != 0, kept), "two calls draw the same"
    assert kept_bytes(lambda: redrawn_dropout(rows, probability)) == 0
    assert redrawn_dropout(rows, probability, training=False) is rows


def test_torchs_generator_decides_what_is_dropped() -> None:
    rows, found = torch.ones(50, requires_grad=True), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(redrawn_dropout(rows, 0.3))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("probability", [1e-9, 1 - 1e-9])
def test_probabilities_at_the_ends(probability: float) -> None:
    dropped = redrawn_dropout(torch.ones(64, requires_grad=True), probability)
    assert dropped.isfinite().all()
    assert int((dropped != 0).sum()) == (64 if probability < 0.5 else 0)
