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
) -> Term:
    """½ (mean over first rows + mean over second rows) of cross-entropy with soft targets (spec §2.1).

    Row i's target is spread evenly over the columns of equal identity, so duplicates are never each other's negatives.
    The sets may differ in size (64 sentences against 384 translations); each row must have an equal on the other side.

    Args:
        first_NE, second_ME: this rank's features of the two sides, unit vectors.
        identity_N, identity_M: what each row of them shows.
        temperature: similarities are divided by it.
        gather: concatenation over the ranks in rank order with the true gradient; used on features and identities.
        label_smoothing: share of each target that is spread over all columns.
        grad_scale: factor on the gradient of the features, not of the temperature: 1/8 reproduces the published runs,
            whose gather dropped it on 8 GPUs.

    Returns:
        Count: this rank's first rows. The sum weighs second rows so that the ratio of global sums is the loss.
    """
    first_NE, second_ME = _prepare(first_NE, grad_scale), _prepare(second_ME, grad_scale)
    all_first, all_second = gather(first_NE), gather(second_ME)
    all_identity_first, all_identity_second = gather(identity_N), gather(identity_M)
    same_NM = identity_N[:, None] == all_identity_second[None]
    same_MN = identity_M[:, None] == all_identity_first[None]
    with torch.autocast(first_NE.device.type, enabled=False):  # it would round what was widened
        forth = _soft_cross_entropy(first_NE @ all_second.T / temperature, same_NM, label_smoothing)
        back = _soft_cross_entropy(second_ME @ all_first.T / temperature, same_MN, label_smoothing)
    ratio = all_first.shape[0] / max(1, all_second.shape[0])
    return make_term(0.5 * (forth + ratio * back), first_NE.shape[0])


def _prepare(features: Tensor, grad_scale: float) -> Tensor:
    """Scale the gradient, and widen to at least float32.

    A similarity with an error of 2^-9, divided by a temperature of 0.02, is off by 0.1.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    if grad_scale != 1.0 and wide.requires_grad:
        wide = wide.view_as(wide)  # the gradients of its other uses stay as they are
        wide.register_hook(lambda gradient: gradient * grad_scale)  # type: ignore[no-untyped-call]
    return wide


def _soft_cross_entropy(logits_NM: Tensor, same_NM: Tensor, label_smoothing: float) -> Tensor:
    """Sum over rows of the cross-entropy against even weights on `same_NM`."""
    logits_NM = logits_NM.float()
    target_NM = same_NM.float() * ((1.0 - label_smoothing) / same_NM.sum(1, keepdim=True))
    if label_smoothing > 0:
        target_NM = target_NM + label_smoothing / torch.full_like(same_NM[:1, :1], same_NM.shape[1], dtype=torch.int64)
    return (logits_NM.logsumexp(1) - (target_NM * logits_NM).sum(1)).sum()
