"""The contrastive loss of two sets of features, image-text (ITC) or text-text (TTC).

Each rank computes its own rows against the columns of all ranks, in both directions; the sum over the ranks is the loss
of the global batch, and the cost per rank is N²/W instead of the N² of the published code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cclm.objectives.term import Term, make_term
from cclm.ops.contrastive import ContrastiveLoss, contrastive_loss


def contrastive(
    first_NE: Float[Tensor, "n e"],
    second_ME: Float[Tensor, "m e"],
    identity_N: Int[Tensor, " n"],
    identity_M: Int[Tensor, " m"],
    temperature: Float[Tensor, " 1"] | float,
    *,
    gather: Callable[[Tensor], Tensor] = lambda local: local,
    label_smoothing: float = 0.0,
    grad_scale: float = 1.0,
    loss: ContrastiveLoss = contrastive_loss,
) -> Term:
    """½ (mean over first rows + mean over second rows) of cross-entropy with soft targets (spec §2.1).

    Row i's target is spread evenly over the columns of equal identity, so duplicates are never each other's negatives.
    The sets may differ in size (64 sentences against 384 translations); each row must have an equal on the other side.

    Args:
        first_NE, second_ME: this rank's features of the two sides, unit vectors.
        identity_N, identity_M: what each row of them shows.
        temperature: similarities are divided by it.
        gather: concatenation over the ranks in rank order with the true gradient; used on features, identities and what
            `loss` needs.
        label_smoothing: share of each target that is spread over all columns.
        grad_scale: factor on the gradient of the features, not of the temperature: 1/8 reproduces the published runs,
            whose gather dropped it on 8 GPUs.
        loss: computes the sum; every rank must multiply it by the same factor (`contrastive_loss`).

    Returns:
        Count: this rank's first rows. The sum weighs second rows so that the ratio of global sums is the loss.
    """
    first_NE, second_ME = _prepare(first_NE, grad_scale), _prepare(second_ME, grad_scale)
    if not isinstance(temperature, Tensor):
        temperature = first_NE.new_tensor([temperature])
    with torch.autocast(first_NE.device.type, enabled=False):  # it would round what was widened
        total = loss(
            first_NE,
            second_ME,
            identity_N,
            identity_M,
            temperature,
            gather=gather,
            label_smoothing=label_smoothing,
        )
    return make_term(total.float(), first_NE.shape[0])


def _prepare(features: Tensor, grad_scale: float) -> Tensor:
    """Scale the gradient, and widen to at least float32.

    A similarity with an error of 2^-9, divided by a temperature of 0.02, is off by 0.1.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    if grad_scale != 1.0 and wide.requires_grad:
        wide = wide.view_as(wide)  # the gradients of its other uses stay as they are
        wide.register_hook(lambda gradient: gradient * grad_scale)  # type: ignore[no-untyped-call]
    return wide
