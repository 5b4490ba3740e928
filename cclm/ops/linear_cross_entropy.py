"""Cross-entropy of a linear layer over a large vocabulary without the whole matrix of logits.

With logits z = h Wᵀ + b, loss_t = logsumexp_v z_tv − z_t,label(t), and each row's factor s_t in the total,

    dtotal/dz_tv = s_t (softmax(z_t)_v − [v = label(t)])      dh = dz W      dW = dzᵀ h      db = Σ_t dz_t

250,000 classes times a few thousand masked slots are gigabytes of logits. So a walk over blocks of rows holds one block
in one reused buffer: logits → softmax in place → loss, and at once the gradients (three products, where recomputing in
backward would take four). They are linear in the incoming gradient, a scalar, so backward only multiplies, in place.

One call serves several kinds of rows: the factors are weights over global counts, known before the losses are, so that
nothing as large as the vocabulary is scaled afterwards, or added up once for each kind.

`linear_cross_entropy_reference` is the slow twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from cclm.ops.linear_cross_entropy_operator import common_dtype, linear_cross_entropy_operator, wide

MAX_LOGITS = {"cpu": 60 << 20, "cuda": 512 << 20}
"""Logits that exist at once, by device: 240 MiB in float32 on a CPU, 251 rows of 250,002 classes. Fewer rows make the
products slow (33 rows run at 44 GFLOP/s where 200 run at 110 on two threads); more rows make the memory large. A GPU
wants more rows and has the memory."""


class RowLosses(NamedTuple):
    """Cross-entropy of T rows."""

    total: Float[Tensor, ""]
    """Σ factor · loss, differentiable once in hidden states, weight and bias; at least float32."""
    loss_T: Float[Tensor, " t"]
    """Each row's own loss, without factor and without gradient."""
    correct_T: Bool[Tensor, " t"]
    """Whether the highest logit is the label's."""


Defer: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(total, residual (T, V), scaled (T, D)) → total; backward gives the weight residualᵀ · scaled · gradient."""
LinearCrossEntropy: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], RowLosses]
"""(hidden (T, D), weight (V, D), bias (V,), label (T,), factor (T,) or None) → losses."""


def linear_cross_entropy(
    hidden_TD: Float[Tensor, "t d"],
    weight_VD: Float[Tensor, "v d"],
    bias_V: Float[Tensor, " v"],
    label_T: Int[Tensor, " t"],
    factor_T: Float[Tensor, " t"] | None = None,
    max_logits: int | None = None,
    defer: Defer | None = None,
) -> RowLosses:
    """Cross-entropy of `hidden_TD @ weight_VD.T + bias_V` against `label_T`.

    Args:
        hidden_TD: T rows; T may be 0, then total and gradients are zero. Types may differ (see `common_dtype`).
        weight_VD, bias_V: of the classes.
        label_T: int64 in [0, V).
        factor_T: of each row in the total, without gradient; None: 1.
        max_logits: upper bound on the logits that exist at once (at least one row is always done); None: `MAX_LOGITS`.
        defer: takes care of the weight's gradient, which need not exist while the layers' activations do. Used in full
            precision, where all rows' logits are no more than that gradient and a block of logits (beyond `max_logits`
            by as much): they stand in place of both.
    """
    given = hidden_TD, weight_VD, bias_V
    if max_logits is None:
        max_logits = MAX_LOGITS.get(hidden_TD.device.type, MAX_LOGITS["cuda"])
    rows = max(1, min(hidden_TD.shape[0], max_logits // weight_VD.shape[0]))
    needs = [torch.is_grad_enabled() and value.requires_grad for value in given]
    dtype, (num_rows, width) = common_dtype(*given), hidden_TD.shape
    keeps = defer is not None and dtype == wide(dtype) and needs[0] and needs[1] and 0 < num_rows <= rows + width
    found = linear_cross_entropy_operator(
        *given, label_T, factor_T, dtype, rows, keeps, [needs[0], needs[1] and not keeps, needs[2]]
    )
    losses = RowLosses(*found[:3])
    if not keeps:
        return losses
    assert defer is not None
    scaled_TD = hidden_TD.detach().to(dtype)
    if factor_T is not None:
        scaled_TD = (scaled_TD * factor_T.to(wide(dtype))[:, None]).to(dtype)
    return losses._replace(total=defer(losses.total, found[6], scaled_TD))


def linear_cross_entropy_reference(
    hidden_TD: Float[Tensor, "t d"],
    weight_VD: Float[Tensor, "v d"],
    bias_V: Float[Tensor, " v"],
    label_T: Int[Tensor, " t"],
    factor_T: Float[Tensor, " t"] | None = None,
    defer: Defer | None = None,
) -> RowLosses:
    """The slow twin of `linear_cross_entropy`: all logits at once, PyTorch's own gradients, nothing deferred."""
    dtype = common_dtype(hidden_TD, weight_VD, bias_V)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        logits_TV = functional.linear(hidden_TD.to(dtype), weight_VD.to(dtype), bias_V.to(dtype)).to(wide(dtype))
        loss_T = functional.cross_entropy(logits_TV, label_T, reduction="none")
    total = loss_T.sum() if factor_T is None else (loss_T * factor_T).sum()
    return RowLosses(total, loss_T.detach(), logits_TV.argmax(1) == label_T)
