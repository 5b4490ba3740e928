"""Generative question answering: how likely a decoder finds an answer, and the loss over weighted answers."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from cclm.objectives.term import Term, make_term


def answer_log_likelihood(
    logits_BLV: Float[Tensor, "b l v"], ids_BL: Int[Tensor, "b l"], mask_BL: Bool[Tensor, "b l"]
) -> Float[Tensor, " b"]:
    """Sum over an answer's tokens of the log-probability of each after those before it.

    Args:
        logits_BLV: what a decoder says at each place about the token after it.
        ids_BL: the answers, from `<s>` to `</s>`; `<s>` is given, not predicted.
        mask_BL: True where a token is real.
    """
    losses_BT = functional.cross_entropy(
        logits_BLV[:, :-1].float().flatten(0, 1), ids_BL[:, 1:].flatten(), reduction="none"
    ).view(ids_BL.shape[0], -1)
    return -(losses_BT * mask_BL[:, 1:]).sum(1)


def answer_loss(log_likelihood_B: Float[Tensor, " b"], weight_B: Float[Tensor, " b"], num_questions: int) -> Term:
    """Weighted negative log-likelihood; counts questions, each of which may have several answers."""
    return make_term(-(log_likelihood_B * weight_B).sum(), num_questions)
