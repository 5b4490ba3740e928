"""The contrastive loss of two sets of features in memory that grows with the number of rows, not with its square.

With s_ij = a_i · b_j / τ over the rows of all ranks, lr_i = logsumexp_j s_ij, lc_j = logsumexp_i s_ij, and soft targets
that are even over equal identities (t_ij over the columns of a row, u_ij over the rows of a column), Cross-View
Language Modeling §3 has

    2 L    = Σ_i (lr_i − Σ_j t_ij s_ij) + ρ Σ_j (lc_j − Σ_i u_ij s_ij)                   ρ = number of rows / columns
    2 G_ij = exp(s_ij − lr_i) − t_ij + ρ (exp(s_ij − lc_j) − u_ij)     dL/da_i = Σ_j G_ij b_j / τ,  dL/db_j likewise

Products with the targets need no matrix: Σ_j t_ij b_j is the mean of the features of equal identity. So a walk over
blocks of rows keeps two vectors of log-sum-exps; backward computes the blocks again. Over several ranks only features,
identities and those two vectors travel: with them each rank's gradient of its own rows is the whole one, and nothing
has to travel back.

Two other forms, in the same walks:

    hardness β   a row's n_i negatives (other identities) get weights w_ij = n_i exp(β s_ij) / Σ_k exp(β s_ik):
                 lr_i = log(Σ_positives exp s_ij + Σ_negatives w_ij exp s_ij), of columns likewise; 0: as above.
                 HN-NCE of DiHT (Radenovic et al. 2023, arXiv 2301.02280) with α = 1, after Robinson et al. (2021,
                 arXiv 2010.04592). Gradients pass through the weights, as in the latter's code.
    a bias       SigLIP (Zhai et al. 2023, arXiv 2303.15343): L = −Σ_ij log sigmoid(z_ij (s_ij + bias)), where z_ij is
                 1 for equal identities, else −1. G_ij = sigmoid(s_ij + bias) − [z_ij = 1]: no vectors travel.

The walks are plain torch (`contrastive_blocks`), or on CUDA the Triton kernels of `contrastive_kernels`.
`contrastive_reference` is the slow twin: whole matrices, PyTorch's own gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from cclm.ops.contrastive_operator import contrastive_operator


class AllRows(NamedTuple):
    """The rows of all ranks (and micro-batches), this one's among them; without gradient."""

    first_NE: Tensor
    second_ME: Tensor
    identity_N: Tensor
    identity_M: Tensor
    first_logs: tuple[Tensor, Tensor] | None = None
    """`log_sums` over all second rows, of this rank's first rows and of all of them; None: with a bias."""
    second_logs: tuple[Tensor, Tensor] | None = None
    """`log_sums` over all first rows, of this rank's second rows and of all of them."""

    @property
    def tensors(self) -> list[Tensor]:
        """Return them in a row."""
        return [*self[:4], *(self.first_logs or ()), *(self.second_logs or ())]


ContrastiveLoss: TypeAlias = Callable[..., Tensor]
"""(first (N, E), second (M, E), identity (N,), identity (M,), temperature (1,), everything=, label_smoothing=,
hardness=, bias=) → a scalar, this rank's part of the sum. Summed over the ranks it is the loss."""
LogSums: TypeAlias = Callable[..., Tensor]
"""(rows (N, E), others (M, E), scale (), identity (N,), identity (M,), hardness=) → what `AllRows` holds of each row
(`contrastive_operator.log_sums`)."""


def contrastive_loss(
    first_NE: Float[Tensor, "n e"],
    second_ME: Float[Tensor, "m e"],
    identity_N: Int[Tensor, " n"],
    identity_M: Int[Tensor, " m"],
    temperature: Float[Tensor, " 1"],
    *,
    everything: AllRows | None = None,
    label_smoothing: float = 0.0,
    hardness: float = 0.0,
    bias: Float[Tensor, " 1"] | None = None,
    is_kernel_wanted: bool = True,
) -> Float[Tensor, ""]:
    """½ (Σ over first rows + ρ · Σ over second rows) of cross-entropy with soft targets, in the features' type.

    With a bias: the sum over first rows and all columns of SigLIP's binary cross-entropy.

    Args:
        first_NE, second_ME: this rank's features of the two sides, float32 or float64.
        identity_N, identity_M: what each row of them shows; each has an equal on the other side, on some rank (the loss
            of a row without one is NaN; with a bias it has negatives only).
        temperature: one number; similarities are divided by it.
        everything: the rows of all ranks; None: these are all. The gradient is the true one where every rank multiplies
            its result by the same factor, as means over the global batch do.
        label_smoothing: share of each target that is spread over all columns.
        hardness: how much similarity decides a negative's weight; 0: not at all.
        bias: of similarities, in the sigmoid form, which knows neither label smoothing nor hardness.
        is_kernel_wanted: use the Triton kernels where they take such features; else always the blocks in plain torch.
    """
    assert bias is None or not (hardness or label_smoothing), "these belong to the softmax form"
    given = first_NE, second_ME, identity_N, identity_M, temperature, bias
    known = [] if everything is None else everything.tensors
    total: Tensor = contrastive_operator(*given, known, label_smoothing, hardness, is_kernel_wanted)[0]
    return total


def contrastive_reference(
    first_NE: Float[Tensor, "n e"],
    second_ME: Float[Tensor, "m e"],
    identity_N: Int[Tensor, " n"],
    identity_M: Int[Tensor, " m"],
    temperature: Float[Tensor, " 1"],
    *,
    everything: AllRows | None = None,
    label_smoothing: float = 0.0,
    hardness: float = 0.0,
    bias: Float[Tensor, " 1"] | None = None,
) -> Float[Tensor, ""]:
    """The slow twin of `contrastive_loss`; the rows of `everything` may need gradients here."""
    all_first, all_second, all_identity_N, all_identity_M = (
        (first_NE, second_ME, identity_N, identity_M) if everything is None else everything[:4]
    )
    logits_NM, same_NM = first_NE @ all_second.T / temperature, identity_N[:, None] == all_identity_M
    if bias is not None:
        return -functional.logsigmoid(torch.where(same_NM, 1.0, -1.0) * (logits_NM + bias)).sum()
    forth = _soft_cross_entropy(logits_NM, same_NM, label_smoothing, hardness)
    back = _soft_cross_entropy(
        second_ME @ all_first.T / temperature, identity_M[:, None] == all_identity_N, label_smoothing, hardness
    )
    return 0.5 * (forth + all_first.shape[0] / max(1, all_second.shape[0]) * back)


def _soft_cross_entropy(logits_NM: Tensor, same_NM: Tensor, label_smoothing: float, hardness: float) -> Tensor:
    """Sum over rows of the cross-entropy against even weights on `same_NM`, and a share for all columns."""
    weighted_NM = logits_NM
    if hardness:
        lowest, number_N1 = torch.finfo(logits_NM.dtype).min / 2, (~same_NM).to(logits_NM.dtype).sum(1, keepdim=True)
        weight_NM = (hardness * logits_NM).masked_fill(same_NM, lowest).log_softmax(1) + number_N1.clamp_min(1).log()
        weighted_NM = torch.where(same_NM, logits_NM, logits_NM + weight_NM)
    same_NM = same_NM.to(logits_NM.dtype)
    target_NM = same_NM * ((1.0 - label_smoothing) / same_NM.sum(1, keepdim=True)) + label_smoothing / same_NM.shape[1]
    return (weighted_NM.logsumexp(1) - (target_NM * logits_NM).sum(1)).sum()
