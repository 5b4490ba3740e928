"""Matching (ITM, TTM): does this text belong to this image or text? With hard negatives drawn from the batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from cclm.objectives.term import Term, make_term

WEIGHT_FLOOR = 1e-5
"""Added to every softmax weight, as published: no candidate is out of reach."""


def negative_weights(
    similarity_FG: Float[Tensor, "f g"], same_FG: Bool[Tensor, "f g"], hardness: float = 1.0
) -> Float[Tensor, "f g"]:
    """How likely each candidate is drawn: softmax(hardness · similarity) + 1e-5, zero where `same_FG` (spec §2.2)."""
    return ((similarity_FG.float() * hardness).softmax(1) + WEIGHT_FLOOR).masked_fill(same_FG, 0.0)


@torch.no_grad()
def draw_negatives(
    similarity_FG: Float[Tensor, "f g"],
    same_FG: Bool[Tensor, "f g"],
    noise_FG: Float[Tensor, "f g"],
    hardness: float,
    own_F: Int[Tensor, " f"] | None = None,
) -> Int[Tensor, " f"]:
    """Draw one negative per row, with probability ∝ softmax(hardness · similarity) + 1e-5 (spec §2.2).

    The draw is the argmax of log weight + Gumbel noise, so it is a function of its inputs and has no loop.

    Args:
        similarity_FG: similarities of F rows to the G candidates of their group, already divided by the temperature.
        same_FG: True where the candidate shows the same thing; never drawn while the row has another candidate.
        noise_FG: standard Gumbel noise.
        hardness: 0 draws evenly, 1 as published.
        own_F: column of each row's own partner. Only used by rows where every candidate is `same`: they fall back to an
            even draw among all columns but their own (all columns, if not given or G is 1). Such a row's label is
            wrong, so groups should hold more than one identity.

    Returns:
        Column of each row's negative.
    """
    score_FG = negative_weights(similarity_FG, same_FG, hardness).log() + noise_FG
    fallback_FG = noise_FG
    if own_F is not None and noise_FG.shape[1] > 1:
        fallback_FG = noise_FG.scatter(1, own_F[:, None], -torch.inf)
    return torch.where(same_FG.all(1, keepdim=True), fallback_FG, score_FG).argmax(1)


def matching(logits_B2: Float[Tensor, "b 2"], labels_B: Int[Tensor, " b"]) -> tuple[Term, Int[Tensor, ""]]:
    """Cross-entropy of the matching head and how many rows it gets right; label 1 means that they match."""
    logits_B2 = logits_B2.float()
    loss = functional.cross_entropy(logits_B2, labels_B, reduction="sum")
    return make_term(loss, labels_B.shape[0]), (logits_B2.argmax(1) == labels_B).sum()
