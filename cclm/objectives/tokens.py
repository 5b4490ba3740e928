"""Losses over tokens: masked language modelling given the other view, and answers that a decoder generates."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from cclm.ops.linear_cross_entropy import LinearCrossEntropy, RowLosses, linear_cross_entropy


def masked_lm(
    hidden_TD: Float[Tensor, "t d"],
    weight_VD: Float[Tensor, "v d"],
    bias_V: Float[Tensor, " v"],
    label_T: Int[Tensor, " t"],
    factor_T: Float[Tensor, " t"] | None = None,
    cross_entropy: LinearCrossEntropy = linear_cross_entropy,
) -> RowLosses:
    """Cross-entropy over the T masked slots (spec §2.3), each times its factor in the total; T may be 0.

    Pass it to the decoder module (`model.decode_with`), which holds `weight_VD` and `bias_V`. The factor of a slot is
    its view's weight over the number of that view's slots in the global batch: so one call serves all views.
    """
    return cross_entropy(hidden_TD, weight_VD, bias_V, label_T, factor_T)


def answer_log_likelihood(
    logits_BLV: Float[Tensor, "b l v"], ids_BL: Int[Tensor, "b l"], mask_BL: Bool[Tensor, "b l"]
) -> Float[Tensor, " b"]:
    """Sum over an answer's tokens of the log-probability of each after those before it.

    Args:
        logits_BLV: what a decoder says at each place about the token after it.
        ids_BL: the answers, from `<s>` to `</s>`; `<s>` is given, not predicted.
        mask_BL: True where a token is real.
    """
    losses_BT = functional.cross_entropy(logits_BLV[:, :-1].float().mT, ids_BL[:, 1:], reduction="none")
    return -(losses_BT * mask_BL[:, 1:]).sum(1)


def answer_loss(log_likelihood_B: Float[Tensor, " b"], weight_B: Float[Tensor, " b"], num_questions: int) -> Tensor:
    """Weighted negative log-likelihood: a mean over questions, each of which may have several answers."""
    return -(log_likelihood_B * weight_B).sum() / max(1, num_questions)
