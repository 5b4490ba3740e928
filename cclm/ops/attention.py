"""Attention and dropout that keep little for the backward pass, for CPUs.

torch's attention has a fused kernel for CPUs, without dropout and without a learned bias. For the rest it keeps scaled
copies of queries and keys, the probabilities, the dropout's factors and their product, all in float32: more than the
layer around it. Here

    S = q kᵀ / √K + mask      P = softmax(S)      D = P ∘ kept / (1 − p)      o = D v

keeps queries, keys, values and one byte for each dropped or kept probability, and computes P again in backward:

    dv = Dᵀ do      dP = (do vᵀ) ∘ kept / (1 − p)      dS = P ∘ (dP − Σ P ∘ dP)      dq = dS k / √K      dk = dSᵀ q / √K

Random numbers are drawn as torch's own attention and dropout draw them.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def recomputed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attention of (B, N, L, K) to (B, N, M, K), as `torch.nn.functional.scaled_dot_product_attention`.

    torch's own where it has a fused kernel, and where nobody goes backward.
    """
    is_learned = mask is not None and mask.requires_grad
    needs_backward = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or is_learned)
    if not needs_backward or (dropout == 0.0 and not is_learned):
        return functional.scaled_dot_product_attention(query, key, value, mask, dropout)
    attended: Tensor = _RecomputedAttention.apply(query, key, value, mask, dropout)  # type: ignore[no-untyped-call]
    return attended


def byte_dropout(rows: Tensor, probability: float, training: bool = True) -> Tensor:
    """`torch.nn.functional.dropout`, bit by bit, that keeps a byte for an element in place of a float."""
    if not training or probability == 0.0 or not (torch.is_grad_enabled() and rows.requires_grad):
        return functional.dropout(rows, probability, training)
    dropped: Tensor = _ByteDropout.apply(rows, probability)  # type: ignore[no-untyped-call]
    return dropped


def _draw(like: Tensor, probability: float) -> Tensor:
    """Factors 0 and 1 / (1 − p), drawn as torch's dropout does."""
    return torch.empty_like(like).bernoulli_(1 - probability).div_(1 - probability)


class _ByteDropout(torch.autograd.Function):
    """Elements times their factors."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, probability: float) -> Tensor:
        """Draw and multiply."""
        factor = _draw(rows, probability)
        ctx.save_for_backward(factor.bool())
        ctx.probability = probability
        return factor.mul_(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The same factors."""
        (kept,) = ctx.saved_tensors
        return _restored(kept, ctx.probability, grad.dtype).mul_(grad), None


def _restored(kept: Tensor, probability: float, dtype: torch.dtype) -> Tensor:
    """The factors again."""
    return kept.to(dtype).div_(1 - probability)


class _RecomputedAttention(torch.autograd.Function):
    """Heads and sequences are one axis, H, of all products."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        """Attend."""
        share_HLM = _probabilities(query, key, mask)
        kept = None
        if dropout > 0.0:
            factor = _draw(share_HLM, dropout)
            kept = factor.bool()
            share_HLM.mul_(factor)
        ctx.save_for_backward(query, key, value, mask, kept)
        ctx.dropout = dropout
        return torch.bmm(share_HLM, value.flatten(0, 1)).view(*query.shape[:-1], value.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the probabilities again, then all gradients."""
        query, key, value, mask, kept = ctx.saved_tensors
        share_HLM = _probabilities(query, key, mask)
        grad_HLK = grad.flatten(0, 1)
        grad_share_HLM = torch.bmm(grad_HLK, value.flatten(0, 1).mT)
        if kept is None:
            into_value = torch.bmm(share_HLM.mT, grad_HLK)
        else:
            factor = _restored(kept, ctx.dropout, grad.dtype)
            grad_share_HLM.mul_(factor)
            into_value = torch.bmm(factor.mul_(share_HLM).mT, grad_HLK)
        grad_score_HLM = torch._softmax_backward_data(grad_share_HLM, share_HLM, -1, share_HLM.dtype)
        into_mask = None
        if ctx.needs_input_grad[3]:
            into_mask = grad_score_HLM.view(*query.shape[:-1], -1).sum_to_size(mask.shape)
        scale = 1 / sqrt(query.shape[-1])
        into_query = _scaled_product(grad_score_HLM, key.flatten(0, 1), scale)
        into_key = _scaled_product(grad_score_HLM.mT, query.flatten(0, 1), scale)
        return into_query.view_as(query), into_key.view_as(key), into_value.view_as(value), into_mask, None


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale · left · right, without another pass over either."""
    empty = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    return torch.baddbmm(empty, left, right, beta=0, alpha=scale, out=empty)


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the masked scores, (H, L, M); zeros in a row without anything to attend to, as torch has it."""
    score_HLM = _scaled_product(query.flatten(0, 1), key.flatten(0, 1).mT, 1 / sqrt(query.shape[-1]))
    if mask is None:
        return torch.softmax(score_HLM, -1)
    score_BNLM = score_HLM.view(*query.shape[:-1], -1)
    if mask.dtype != torch.bool:
        score_BNLM.add_(mask)
        return torch.softmax(score_HLM, -1)
    score_BNLM.masked_fill_(~mask, -inf)
    share_BNLM = torch.softmax(score_BNLM, -1)
    return share_BNLM.masked_fill_(~mask.any(-1, keepdim=True), 0.0).flatten(0, 1)
