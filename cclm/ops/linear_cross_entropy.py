"""Cross-entropy of a linear layer over a large vocabulary without the whole matrix of logits.

250,000 classes times a few thousand masked slots are gigabytes of logits. The chunked version walks over row blocks:
logits of one block, loss, and at once the block's gradients (they are linear in the incoming gradient, which is a
scalar, so backward only multiplies). That also means that backward never needs the weight, and costs three matrix
products instead of four. `linear_cross_entropy_reference` is the slow twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

LinearCrossEntropy: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(hidden (T, D), weight (V, D), bias (V,), label (T,)) → summed loss, number of right predictions."""
MAX_LOGITS = 1 << 23
"""Logits that may exist at once: 32 MiB in float32."""


def linear_cross_entropy(
    hidden_TD: Float[Tensor, "t d"],
    weight_VD: Float[Tensor, "v d"],
    bias_V: Float[Tensor, " v"],
    label_T: Int[Tensor, " t"],
    max_logits: int = MAX_LOGITS,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Summed cross-entropy of `hidden_TD @ weight_VD.T + bias_V` against `label_T`, and how often the argmax is right.

    Args:
        hidden_TD: T rows; T may be 0, then loss, count and gradients are zero. Types may differ (see `common_dtype`).
        weight_VD, bias_V: of the classes.
        label_T: int64 in [0, V).
        max_logits: upper bound on the logits that exist at once (at least one row is always done).

    Returns:
        The loss, summed over rows in float32, differentiable once in the first three arguments; the int64 count.
    """
    rows = max(1, max_logits // weight_VD.shape[0])
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden_TD, weight_VD, bias_V))
    found: tuple[Tensor, Tensor] = _ChunkedLoss.apply(hidden_TD, weight_VD, bias_V, label_T, rows, needs_grad)  # type: ignore[no-untyped-call]
    return found


def linear_cross_entropy_reference(
    hidden_TD: Float[Tensor, "t d"],
    weight_VD: Float[Tensor, "v d"],
    bias_V: Float[Tensor, " v"],
    label_T: Int[Tensor, " t"],
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The slow twin of `linear_cross_entropy`: all logits at once, PyTorch's own gradients."""
    dtype = common_dtype(hidden_TD, weight_VD, bias_V)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        logits_TV = functional.linear(hidden_TD.to(dtype), weight_VD.to(dtype), bias_V.to(dtype)).float()
        loss = functional.cross_entropy(logits_TV, label_T, reduction="sum")
    return loss, (logits_TV.argmax(1) == label_T).sum()


def common_dtype(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor) -> torch.dtype:
    """What the products are computed in: autocast's type where it is on, else the widest of the three.

    Under autocast a LayerNorm returns float32 on CUDA while the weight is bfloat16 (or the other way round).
    """
    device = hidden_TD.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(torch.promote_types(hidden_TD.dtype, weight_VD.dtype), bias_V.dtype)


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one walk over blocks of rows."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor, label_T: Tensor, rows: int, needs_grad: bool
    ) -> tuple[Tensor, Tensor]:
        """Sums; with `needs_grad` also the gradients, in the types of the arguments."""
        given = hidden_TD, weight_VD, bias_V
        dtype = common_dtype(*given)
        with torch.autocast(hidden_TD.device.type, enabled=False):
            hidden_TD, weight_VD, bias_V = (value.to(dtype) for value in given)
            loss, correct, grads = _walk(hidden_TD, weight_VD, bias_V, label_T, rows, needs_grad)
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(*(grad.to(value.dtype) for grad, value in zip(grads, given, strict=False)))
        return loss, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what forward has found."""
        scaled = [grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors]
        needed = [grad if needs else None for grad, needs in zip(scaled, ctx.needs_input_grad[:3], strict=True)]
        return (*needed, None, None, None)


def _walk(
    hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor, label_T: Tensor, rows: int, needs_grad: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Loss, count, and with `needs_grad` the gradients: float32 where they are accumulated over blocks."""
    loss = torch.zeros((), dtype=torch.float32, device=hidden_TD.device)
    correct = torch.zeros((), dtype=torch.int64, device=hidden_TD.device)
    grads: tuple[Tensor, ...] = ()
    if needs_grad:
        sums = (torch.zeros_like(value, dtype=torch.float32) for value in (weight_VD, bias_V))
        grads = (torch.empty_like(hidden_TD), *sums)
    for start in range(0, hidden_TD.shape[0], rows):
        block_TD, label_T1 = hidden_TD[start : start + rows], label_T[start : start + rows, None]
        logits_TV = functional.linear(block_TD, weight_VD, bias_V).float()
        highest_T1, guess_T1 = logits_TV.max(1, keepdim=True)
        correct += (guess_T1 == label_T1).sum()
        logits_TV -= highest_T1
        label_logit_T1 = logits_TV.gather(1, label_T1)
        residual_TV = logits_TV.exp_()
        total_T1 = residual_TV.sum(1, keepdim=True)
        loss += (total_T1.log() - label_logit_T1).sum()
        if grads:
            residual_TV /= total_T1  # probabilities, minus the label's 1
            residual_TV.scatter_add_(1, label_T1, torch.full_like(label_logit_T1, -1.0))
            low_TV = residual_TV.to(hidden_TD.dtype)
            torch.mm(low_TV, weight_VD, out=grads[0][start : start + rows])
            if low_TV.dtype == torch.float32:  # in place where the types allow: it is as large as the vocabulary
                grads[1].addmm_(low_TV.T, block_TD)
            else:
                grads[1].add_(low_TV.T @ block_TD)
            grads[2].add_(residual_TV.sum(0))
    return loss, correct, grads
