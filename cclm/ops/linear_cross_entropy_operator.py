"""The linear layer's cross-entropy as an operator that torch.compile and torch.export see through.

`cclm::linear_cross_entropy` computes losses and gradients in one walk over blocks of rows; `linear_cross_entropy` has
the formulas. This file is imported once a process: it registers what is called by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cclm.ops.heap import make_room


def common_dtype(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor) -> torch.dtype:
    """What the products are computed in: autocast's type where it is on, else the widest of the three.

    Under autocast a LayerNorm returns float32 on CUDA while the weight is bfloat16 (or the other way round).
    """
    device = hidden_TD.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(torch.promote_types(hidden_TD.dtype, weight_VD.dtype), bias_V.dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    """At least float32: softmax, losses, and sums over blocks."""
    return torch.promote_types(dtype, torch.float32)


@torch.library.custom_op(
    "cclm::linear_cross_entropy",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor bias, Tensor label, Tensor? factor, ScalarType dtype, SymInt rows, "
    "bool keeps, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def linear_cross_entropy_operator(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    label_T: Tensor,
    factor_T: Tensor | None,
    dtype: torch.dtype,
    rows: int,
    keeps: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return `RowLosses`, and the gradients of the first three, in their types (empty where nobody needs one).

    Products are computed in `dtype`, for `rows` rows at once. Last, if `keeps`, of all rows, which are then one block:
    the gradient of their logits, without factors, in `dtype` (else empty).
    """
    given, factor_type = (hidden_TD, weight_VD, bias_V), wide(dtype)
    if factor_T is None:
        factor_T = label_T.new_ones(label_T.shape, dtype=factor_type)
    factor_T = factor_T.to(factor_type)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        walk = _Walk(hidden_TD.to(dtype), weight_VD.to(dtype), bias_V.to(dtype), label_T, factor_T, needs)
        num_rows, kept_TV = hidden_TD.shape[0], hidden_TD.new_empty(0, dtype=dtype)
        if keeps:
            kept_TV = walk.add(slice(0, num_rows), num_rows)
        else:
            for start in range(0, num_rows, rows):
                walk.add(slice(start, min(start + rows, num_rows)), rows)
        total = (walk.loss_T * factor_T).sum()
    found = [
        value.new_empty(0) if grad is None else grad.to(value.dtype)
        for grad, value in zip(walk.grads, given, strict=True)
    ]
    return total, walk.loss_T, walk.correct_T, found[0], found[1], found[2], kept_TV


@linear_cross_entropy_operator.register_fake
def _(
    hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor, label_T: Tensor, factor_T: Tensor | None,
    dtype: torch.dtype, rows: int, keeps: bool, needs: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    loss_T = label_T.new_empty(label_T.shape, dtype=wide(dtype))
    given = zip((hidden_TD, weight_VD, bias_V), needs, strict=True)
    grads = (value.new_empty(value.shape if is_needed else 0) for value, is_needed in given)
    kept_TV = hidden_TD.new_empty((len(hidden_TD), len(weight_VD)) if keeps else 0, dtype=dtype)
    return loss_T.new_empty(()), loss_T, torch.empty_like(label_T, dtype=torch.bool), *grads, kept_TV


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # zeros as large as the vocabulary
    ctx.mark_non_differentiable(*output[1:])
    ctx.needs = inputs[-1]
    ctx.save_for_backward(*output[3:6])


def _differentiate(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    """Scale what forward has found, in place: a second copy would be as large as the vocabulary.

    Autograd notices, and refuses to go backward a second time. Whether there is anything to scale is looked at on the
    CPU only: a GPU would have to wait for the answer.
    """
    if grad_total is None:
        return (None,) * 9
    grads = [grad if is_needed else None for grad, is_needed in zip(ctx.saved_tensors, ctx.needs, strict=True)]
    if type(grad_total) is not Tensor:  # a compiler's, which plans memory itself
        grads = [None if grad is None else grad * grad_total.to(grad.dtype) for grad in grads]
    elif grad_total.device.type != "cpu" or grad_total != 1:
        for grad in grads:
            if grad is not None:
                grad.mul_(grad_total.to(grad.dtype))
    return (*grads, *(None,) * 6)


linear_cross_entropy_operator.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.cclm.linear_cross_entropy)
def _flops(hidden: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any) -> int:
    """The logits, and a product for each gradient of the two matrices."""
    return int(2 * hidden[0] * hidden[1] * weight[0] * (1 + sum(rest[-1][:2])))


class _Walk:
    """One block of rows after another: losses, right answers and gradients (None where nobody needs one)."""

    def __init__(
        self,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        label_T: Tensor,
        factor_T: Tensor,
        needs: Sequence[bool],
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

    def add(self, block: slice, rows: int) -> Tensor:
        """Compute a block of at most `rows` rows; return its probabilities, less the labels' ones for gradients."""
        num_classes = self._weight_VD.shape[0]
        if self._buffer.numel() == 0:  # one piece of memory for all blocks: fresh pages cost as much as a product
            if self._hidden_TD.device.type == "cpu":
                make_room(rows * num_classes * self._hidden_TD.element_size())
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
        if all(grad is None for grad in self.grads):
            return residual_NV
        residual_NV.scatter_add_(1, label_N1, torch.full_like(label_logit_N1, -1.0))
        low_NV = residual_NV.to(self._hidden_TD.dtype)
        self._add_gradients(block, residual_NV, low_NV)
        return low_NV

    def _add_gradients(self, block: slice, residual_NV: Tensor, low_NV: Tensor) -> None:
        """Of a block, from its probabilities less the labels' ones. Factors are applied to what is small: (N, D)."""
        into_hidden_TD, into_weight_VD, into_bias_V = self.grads
        factor_N, kept = self._factor_T[block], float(block.start > 0)  # the first block writes, others add
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
