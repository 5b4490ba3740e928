"""Attention and dropout that keep little for the backward pass, for CPUs.

torch's attention has a fused kernel for CPUs, without dropout and without a learned bias. For the rest it keeps scaled
copies of queries and keys, the probabilities, the dropout's factors and their product, all in float32: more than the
layer around it. Here

    S = q kᵀ / √K + mask      P = softmax(S)      D = P ∘ kept / (1 − p)      o = D v

keeps queries, keys and values, and computes P again in backward:

    dv = Dᵀ do      dP = (do vᵀ) ∘ kept / (1 − p)      dS = P ∘ (dP − Σ P ∘ dP)      dq = dS k / √K      dk = dSᵀ q / √K

What dropout keeps is drawn anew, too, from a seed that torch's generator gives: two random bytes decide about an
element, so p is a multiple of 2⁻¹⁶ (0.1 becomes 0.100006, in the divisor, too). torch draws one element after the other
from its Mersenne Twister, which takes ten times as long.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def recomputed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attention of (B, N, L, K) to (B, N, M, K), as `torch.nn.functional.scaled_dot_product_attention`.

    torch's own where it has a fused kernel. With dropout never, with or without gradients: a micro-batch passes twice,
    first without, and must draw the same.
    """
    is_learned = torch.is_grad_enabled() and mask is not None and mask.requires_grad
    if dropout == 0.0 and not is_learned:
        return functional.scaled_dot_product_attention(query, key, value, mask)
    drops = Drops(dropout) if dropout > 0.0 else None
    attended: Tensor = _RecomputedAttention.apply(query, key, value, mask, drops)  # type: ignore[no-untyped-call]
    return attended


def redrawn_dropout(rows: Tensor, probability: float, training: bool = True) -> Tensor:
    """`torch.nn.functional.dropout` with other draws, which keeps a seed in place of a factor for each element."""
    if not training or probability == 0.0:
        return rows
    dropped: Tensor = _RedrawnDropout.apply(rows, Drops(probability))  # type: ignore[no-untyped-call]
    return dropped


class Drops:
    """Which elements are kept: independent of each other, and the same however often they are asked for."""

    def __init__(self, probability: float) -> None:
        """Draw a seed from torch's generator of the CPU."""
        self.seed = int(torch.randint(2**63 - 1, ()))
        self._num_dropped = min(2**16 - 1, round(probability * 2**16))
        self.scale = 2**16 / (2**16 - self._num_dropped)
        """1 / (1 − p)."""

    def kept(self, like: Tensor) -> Tensor:
        """Return ones and zeros, of the shape, type and device of `like`."""
        kept = torch.empty_like(like, memory_format=torch.contiguous_format)
        words = np.random.SFC64(self.seed).random_raw(-(-like.numel() // 4))
        drawn = torch.from_numpy(words.view(np.int16)[: like.numel()]).view(like.shape)
        return torch.ge(drawn.to(like.device), self._num_dropped - 2**15, out=kept)


class _RedrawnDropout(torch.autograd.Function):
    """Elements times their factors."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, drops: Drops) -> Tensor:
        ctx.drops = drops
        return drops.kept(rows).mul_(rows).mul_(drops.scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.drops.kept(grad).mul_(grad).mul_(ctx.drops.scale), None


class _RecomputedAttention(torch.autograd.Function):
    """Heads and sequences are one axis, H, of all products."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, drops: Drops | None
    ) -> Tensor:
        shape_BNL = query.shape[:-1]
        query_HLK, key_HMK, value_HMK = (part.flatten(0, 1) for part in (query, key, value))
        # copies, mostly: they are kept in place of what the projection gave, which then goes
        ctx.save_for_backward(query_HLK, key_HMK, value_HMK, mask)
        ctx.drops, ctx.shape_BNL = drops, shape_BNL
        share_HLM = _probabilities(query_HLK, key_HMK, mask, shape_BNL)
        if drops is not None:
            share_HLM.mul_(drops.kept(share_HLM))
        attended_HLK = _scaled_product(share_HLM, value_HMK, 1.0 if drops is None else drops.scale)
        return attended_HLK.view(*shape_BNL, value.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the probabilities again, then all gradients."""
        query_HLK, key_HMK, value_HMK, mask = ctx.saved_tensors
        drops, shape_BNL = ctx.drops, ctx.shape_BNL
        share_HLM = _probabilities(query_HLK, key_HMK, mask, shape_BNL)
        grad_HLK, scale = grad.flatten(0, 1), 1.0 if drops is None else drops.scale
        grad_share_HLM = _scaled_product(grad_HLK, value_HMK.mT, scale)
        dropped_HLM = share_HLM
        if drops is not None:
            kept_HLM = drops.kept(share_HLM)
            grad_share_HLM.mul_(kept_HLM)
            dropped_HLM = kept_HLM.mul_(share_HLM)
        into_value = _scaled_product(dropped_HLM.mT, grad_HLK, scale)
        grad_score_HLM = torch._softmax_backward_data(grad_share_HLM, share_HLM, -1, share_HLM.dtype)
        into_mask = None
        if ctx.needs_input_grad[3]:
            into_mask = grad_score_HLM.view(*shape_BNL, -1).sum_to_size(mask.shape)
        scale = 1 / sqrt(query_HLK.shape[-1])
        into_query = _scaled_product(grad_score_HLM, key_HMK, scale)
        into_key = _scaled_product(grad_score_HLM.mT, query_HLK, scale)
        heads = shape_BNL[:2]
        gradients = (part.view(*heads, *part.shape[1:]) for part in (into_query, into_key, into_value))
        return *gradients, into_mask, None


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale · left · right, without another pass over either."""
    empty = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    return torch.baddbmm(empty, left, right, beta=0, alpha=scale, out=empty)


def _probabilities(query_HLK: Tensor, key_HMK: Tensor, mask: Tensor | None, shape_BNL: torch.Size) -> Tensor:
    """Softmax of the masked scores, (H, L, M); zeros in a row without anything to attend to, as torch has it."""
    score_HLM = _scaled_product(query_HLK, key_HMK.mT, 1 / sqrt(query_HLK.shape[-1]))
    if mask is None:
        return torch.softmax(score_HLM, -1)
    score_BNLM = score_HLM.view(*shape_BNL, -1)
    if mask.dtype != torch.bool:
        score_BNLM.add_(mask)
        return torch.softmax(score_HLM, -1)
    score_BNLM.masked_fill_(~mask, -inf)
    share_BNLM = torch.softmax(score_BNLM, -1)
    return share_BNLM.masked_fill_(~mask.any(-1, keepdim=True), 0.0).flatten(0, 1)
