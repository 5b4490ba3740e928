"""Matching (ITM, TTM): does this text belong to this image or text? With hard negatives drawn from the batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from cclm.ops.hard_negatives import WEIGHT_FLOOR


def negative_weights(
    similarity_FG: Float[Tensor, "f g"], same_FG: Bool[Tensor, "f g"], hardness: float = 1.0
) -> Float[Tensor, "f g"]:
    """How likely each candidate is drawn: softmax(hardness · similarity) + 1e-5, zero where `same_FG` (spec §2.2)."""
    return ((similarity_FG.float() * hardness).softmax(1) + WEIGHT_FLOOR).masked_fill(same_FG, 0.0)


@torch.no_grad()
def draw_negatives(
    similarity_FG: Float[Tensor, "f g"], same_FG: Bool[Tensor, "f g"], noise_FG: Float[Tensor, "f g"], hardness: float
) -> Int[Tensor, " f"]:
    """Return the column of one negative per row, drawn ∝ softmax(hardness · similarity) + 1e-5 (spec §2.2).

    The draw is the argmax of log weight + Gumbel noise, so it is a function of its inputs and has no loop.

    Args:
        similarity_FG: similarities of F rows to the G candidates of their group, already divided by the temperature.
        same_FG: True where the candidate shows the same thing: never drawn. A row without another candidate gets any
            column, and must not count (`has_negative`).
        noise_FG: standard Gumbel noise.
    """
    return (negative_weights(similarity_FG, same_FG, hardness).log() + noise_FG).argmax(1)


def has_negative(identity_KG: Int[Tensor, "k g"]) -> Bool[Tensor, " k"]:
    """Return whether a group shows more than one thing: then each of its rows has a negative, else none has."""
    return identity_KG.amin(1) != identity_KG.amax(1)


def matching(
    logits_B2: Float[Tensor, "b 2"], labels_B: Int[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:
    """Cross-entropy of the matching head for each row (label 1: they match), float32, and whether it is right."""
    logits_B2 = logits_B2.float()
    return functional.cross_entropy(logits_B2, labels_B, reduction="none"), logits_B2.argmax(1) == labels_B
