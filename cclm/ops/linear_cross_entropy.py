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
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

MAX_LOGITS = {"cpu": 50 << 20, "cuda": 512 << 20}
"""Logits that exist at once, by device: 200 MiB in float32 on a CPU, 209 rows of 250,002 classes. Fewer rows make the
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


LinearCrossEntropy: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], RowLosses]
"""(hidden (T, D), weight (V, D), bias (V,), label (T,), factor (T,) or None) → losses."""


def linear_cross_entropy(
    hidden_TD: Float[Tensor, "t d"],
    weight_VD: Float[Tensor, "v d"],
    bias_V: Float[Tensor, " v"],
    label_T: Int[Tensor, " t"],
    factor_T: Float[Tensor, " t"] | None = None,
    max_logits: int | None = None,
) -> RowLosses:
    """Cross-entropy of `hidden_TD @ weight_VD.T + bias_V` against `label_T`.

    Args:
        hidden_TD: T rows; T may be 0, then total and gradients are zero. Types may differ (see `common_dtype`).
        weight_VD, bias_V: of the classes.
        label_T: int64 in [0, V).
        factor_T: of each row in the total, without gradient; None: 1.
        max_logits: upper bound on the logits that exist at once (at least one row is always done); None: `MAX_LOGITS`.
    """
    given = hidden_TD, weight_VD, bias_V
    if max_logits is None:
        max_logits = MAX_LOGITS.get(hidden_TD.device.type, MAX_LOGITS["cuda"])
    rows = max(1, min(hidden_TD.shape[0], max_logits // weight_VD.shape[0]))
    needs = tuple(torch.is_grad_enabled() and value.requires_grad for value in given)
    return RowLosses(*_ChunkedLoss.apply(*given, label_T, factor_T, rows, needs))  # type: ignore[no-untyped-call]


def linear_cross_entropy_reference(
    hidden_TD: Float[Tensor, "t d"],
    weight_VD: Float[Tensor, "v d"],
    bias_V: Float[Tensor, " v"],
    label_T: Int[Tensor, " t"],
    factor_T: Float[Tensor, " t"] | None = None,
) -> RowLosses:
    """The slow twin of `linear_cross_entropy`: all logits at once, PyTorch's own gradients."""
    dtype = common_dtype(hidden_TD, weight_VD, bias_V)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        logits_TV = functional.linear(hidden_TD.to(dtype), weight_VD.to(dtype), bias_V.to(dtype)).to(_wide(dtype))
        loss_T = functional.cross_entropy(logits_TV, label_T, reduction="none")
    total = loss_T.sum() if factor_T is None else (loss_T * factor_T).sum()
    return RowLosses(total, loss_T.detach(), logits_TV.argmax(1) == label_T)


def common_dtype(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor) -> torch.dtype:
    """What the products are computed in: autocast's type where it is on, else the widest of the three.

    Under autocast a LayerNorm returns float32 on CUDA while the weight is bfloat16 (or the other way round).
    """
    device = hidden_TD.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(torch.promote_types(hidden_TD.dtype, weight_VD.dtype), bias_V.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """At least float32: softmax, losses, and sums over blocks."""
    return torch.promote_types(dtype, torch.float32)


class _ChunkedLoss(torch.autograd.Function):
    """Losses and gradients in one walk over blocks of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        label_T: Tensor,
        factor_T: Tensor | None,
        rows: int,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses; and the gradients that are needed, in the types of the arguments."""
        given = hidden_TD, weight_VD, bias_V
        dtype = common_dtype(*given)
        factor_T = (
            label_T.new_ones(label_T.shape, dtype=_wide(dtype)) if factor_T is None else factor_T.to(_wide(dtype))
        )
        with torch.autocast(hidden_TD.device.type, enabled=False):
            walk = _Walk(hidden_TD.to(dtype), weight_VD.to(dtype), bias_V.to(dtype), label_T, factor_T, needs)
            for start in range(0, hidden_TD.shape[0], rows):
                walk.add(slice(start, min(start + rows, hidden_TD.shape[0])), rows)
        ctx.mark_non_differentiable(walk.loss_T, walk.correct_T)
        ctx.save_for_backward(
            *(None if grad is None else grad.to(value.dtype) for grad, value in zip(walk.grads, given, strict=True))
        )
        return (walk.loss_T * factor_T).sum(), walk.loss_T, walk.correct_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what forward has found, in place: a second copy would be as large as the vocabulary.

        Autograd notices, and refuses to go backward a second time. Whether there is anything to scale is looked at on
        the CPU only: a GPU would have to wait for the answer.
        """
        grads = ctx.saved_tensors
        if grad_total.device.type != "cpu" or grad_total != 1:
            for grad in grads:
                if grad is not None:
                    grad.mul_(grad_total.to(grad.dtype))
        return (*grads, None, None, None, None)


class _Walk:
    """One block of rows after another: losses, right answers and gradients (None where nobody needs one)."""

    def __init__(
        self,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        label_T: Tensor,
        factor_T: Tensor,
        needs: tuple[bool, bool, bool],
    ) -> None:
        self._hidden_TD, self._weight_VD, self._bias_V = hidden_TD, weight_VD, bias_V
        self._label_T, self._factor_T = label_T, factor_T
        self._buffer = hidden_TD.new_empty(0)
        self.loss_T = torch.zeros_like(factor_T)
        self.correct_T = torch.zeros_like(label_T, dtype=torch.bool)
        self.grads = (
            torch.empty_like(hidden_TD) if needs[0] else None,
            torch.empty_like(weight_VD, dtype=factor_T.dtype) if needs[1] else None,
            torch.empty_like(bias_V, dtype=factor_T.dtype) if needs[2] else None,
        )
        if hidden_TD.shape[0] == 0:
            for grad in self.grads[1:]:
                if grad is not None:
                    grad.zero_()

    def add(self, block: slice, rows: int) -> None:
        """Compute a block of at most `rows` rows."""
        num_classes = self._weight_VD.shape[0]
        if self._buffer.numel() == 0:  # one piece of memory for all blocks: fresh pages cost as much as a product
            self._buffer = self._hidden_TD.new_empty(rows * num_classes)
        hidden_ND, label_N1 = self._hidden_TD[block], self._label_T[block, None]
        logits_NV = self._buffer[: hidden_ND.shape[0] * num_classes].view(-1, num_classes)
        torch.addmm(self._bias_V, hidden_ND, self._weight_VD.T, out=logits_NV)
        logits_NV = logits_NV.to(self.loss_T.dtype)  # the same memory, if that is its type
        highest_N1, guess_N1 = logits_NV.max(1, keepdim=True)
        label_logit_N1 = logits_NV.gather(1, label_N1)
        residual_NV = torch.softmax(logits_NV, 1, out=logits_NV)
        # the highest probability is at least 1 / V: its logarithm is finite where the label's can be minus infinity
        log_total_N1 = highest_N1 - residual_NV.gather(1, guess_N1).log()
        self.loss_T[block] = (log_total_N1 - label_logit_N1)[:, 0]
        self.correct_T[block] = (guess_N1 == label_N1)[:, 0]
        if any(grad is not None for grad in self.grads):
            residual_NV.scatter_add_(1, label_N1, torch.full_like(label_logit_N1, -1.0))
            self._add_gradients(block, residual_NV)

    def _add_gradients(self, block: slice, residual_NV: Tensor) -> None:
        """Of a block, from its probabilities less the labels' ones. Factors are applied to what is small: (N, D)."""
        into_hidden_TD, into_weight_VD, into_bias_V = self.grads
        factor_N, kept = self._factor_T[block], float(block.start > 0)  # the first block writes, others add
        low_NV = residual_NV.to(self._hidden_TD.dtype)
        if into_hidden_TD is not None:
            into_hidden_TD[block] = (low_NV @ self._weight_VD) * factor_N[:, None]
        if into_weight_VD is not None:
            scaled_ND = (self._hidden_TD[block] * factor_N[:, None]).to(low_NV.dtype)
            if low_NV.dtype == into_weight_VD.dtype:  # in place where the types allow
                into_weight_VD.addmm_(low_NV.T, scaled_ND, beta=kept)
            elif block.start == 0:
                into_weight_VD.copy_(low_NV.T @ scaled_ND)
            else:
                into_weight_VD.add_(low_NV.T @ scaled_ND)
        if into_bias_V is not None:
            into_bias_V.addmv_(residual_NV.T, factor_N, beta=kept)
