"""Losses over tokens: answers that a decoder generates. Masked-LM: `cclm.ops.linear_cross_entropy`."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def answer_log_likelihood(
    logits_BLV: Float[Tensor, "b l v"], ids_BL: Int[Tensor, "b l"], mask_BL: Bool[Tensor, "b l"]
) -> Float[Tensor, " b"]:
    """Sum over an answer's tokens (from `<s>`, which is given) of the log-probability of each after those before it."""
    losses_BT = functional.cross_entropy(logits_BLV[:, :-1].float().mT, ids_BL[:, 1:], reduction="none")
    return -(losses_BT * mask_BL[:, 1:]).sum(1)
