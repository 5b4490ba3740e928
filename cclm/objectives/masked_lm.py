"""Conditional masked language modelling: predict the masked tokens of one view given the other."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from cclm.objectives.term import Term, make_term
from cclm.ops.linear_cross_entropy import LinearCrossEntropy, linear_cross_entropy


def masked_lm(
    hidden_TD: Float[Tensor, "t d"],
    weight_VD: Float[Tensor, "v d"],
    bias_V: Float[Tensor, " v"],
    label_T: Int[Tensor, " t"],
    cross_entropy: LinearCrossEntropy = linear_cross_entropy,
) -> tuple[Term, Int[Tensor, ""]]:
    """Cross-entropy over the T masked slots (spec §2.3) and how many are predicted right; T may be 0.

    Pass it to the decoder module (`model.decode_with`), which holds `weight_VD` and `bias_V`.
    """
    loss, correct = cross_entropy(hidden_TD, weight_VD, bias_V, label_T)
    return make_term(loss, label_T.shape[0]), correct
