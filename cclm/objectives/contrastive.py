"""The contrastive loss of two sets of features, image-text (ITC) or text-text (TTC).

Each rank computes its own rows against the columns of all ranks, in both directions; the sum over the ranks is the loss
of the global batch, and the cost per rank is N²/W instead of the N² of the published code.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cclm.ops.contrastive import AllRows, ContrastiveLoss, contrastive_loss


def contrastive(
    first_NE: Float[Tensor, "n e"],
    second_ME: Float[Tensor, "m e"],
    identity_N: Int[Tensor, " n"],
    identity_M: Int[Tensor, " m"],
    temperature: Float[Tensor, " 1"] | float,
    *,
    everything: AllRows | None = None,
    label_smoothing: float = 0.0,
    hardness: float = 0.0,
    bias: Float[Tensor, " 1"] | None = None,
    grad_scale: float = 1.0,
    width: int | None = None,
    loss: ContrastiveLoss = contrastive_loss,
) -> Float[Tensor, ""]:
    """½ (Σ over first rows + N/M · Σ over second rows) of cross-entropy with soft targets (spec §2.1), float32.

    Summed over the ranks and divided by the number N of all first rows it is the loss.

    Row i's target is spread evenly over the columns of equal identity, so duplicates are never each other's negatives.
    The sets may differ in size (64 sentences against 384 translations); each row must have an equal on the other side.

    Args:
        first_NE, second_ME: this rank's features of the two sides, unit vectors; identities say what each shows.
        everything: the rows of all ranks; None: these are all.
        hardness, bias: other forms of the loss (`cclm.ops.contrastive`): hardness-weighted negatives; SigLIP's.
        grad_scale: factor on the gradient of the features, not of the temperature: 1/8 reproduces the published runs,
            whose gather dropped it on 8 GPUs.
        width: of only so many first components, made unit vectors (`first_components`); None: of all. The logarithms in
            `everything` are then of these, too.
        loss: computes the sum; every rank must multiply it by the same factor (`contrastive_loss`).
    """
    first_NE, second_ME = _prepare(first_NE, grad_scale, width), _prepare(second_ME, grad_scale, width)
    if everything is not None:
        all_first, all_second = (first_components(widen(rows), width) for rows in everything[:2])
        everything = everything._replace(first_NE=all_first, second_ME=all_second)
    if not isinstance(temperature, Tensor):
        temperature = first_NE.new_tensor([temperature])
    with torch.autocast(first_NE.device.type, enabled=False):  # it would round what was widened
        total = loss(
            first_NE,
            second_ME,
            identity_N,
            identity_M,
            temperature,
            everything=everything,
            label_smoothing=label_smoothing,
            hardness=hardness,
            bias=bias,
        )
    return total.float()


def widen(features: Tensor) -> Tensor:
    """At least float32: a similarity with an error of 2^-9, divided by a temperature of 0.02, is off by 0.1."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def first_components(features: Tensor, width: int | None) -> Tensor:
    """Return the first `width` components of each feature as a unit vector; None: the features themselves."""
    return features if width is None else functional.normalize(features[:, :width], dim=1)


def _prepare(features: Tensor, grad_scale: float, width: int | None) -> Tensor:
    """Widen, scale the gradient, and cut."""
    wide = widen(features)
    if grad_scale != 1.0 and wide.requires_grad:
        wide = wide.view_as(wide)  # the gradients of its other uses stay as they are
        wide.register_hook(lambda gradient: gradient * grad_scale)  # type: ignore[no-untyped-call]
    return first_components(wide, width)
