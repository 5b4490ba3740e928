"""The walks of the contrastive loss over blocks of rows, in plain torch; `contrastive` has the formulas.

Each comes once forward, for what is summed over a row, and once backward, for Σ_j g_ij b_j. What is summed of the
similarities s_ij of a row:

    softmax    logsumexp_j s_ij
    hard       `hard_logs` of the log-sum-exps of its positives and of its negatives
    sigmoid    Σ_j log(1 + exp(s_ij + bias)) and Σ_j sigmoid(s_ij + bias)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ROWS_PER_BLOCK = 512
LARGEST_WIDTH = 256
"""Of features that the kernels take: they hold the gradient of a block's rows whole, and wider ones would spill."""
FIXED_SHIFT_LIMIT = 30.0
"""Up to this bound on |s|, exp(s − bound) cannot underflow: one exponential then serves both directions."""
SOFTPLUS_IS_LINEAR = 40.0
"""Above, log(1 + exp(x)) is x, in float64 too."""


class Form(NamedTuple):
    """Which loss: the softmax one; with `hardness` its hard form; with a bias the sigmoid one."""

    hardness: float = 0.0
    bias: Tensor | None = None
    """Shape (1,)."""


class Side(NamedTuple):
    """One side's rows of this rank, and all rows of the other: what one walk of backward needs."""

    rows_NE: Tensor
    others_ME: Tensor
    identity_N: Tensor
    identity_M: Tensor
    row_logs: Tensor
    """Of each row over all others: (N,), of the hard form (N, 3); the sigmoid form needs none."""
    other_logs: Tensor
    """Of each of the others over all rows of this side."""
    weights: tuple[float, float]
    """Of a row's own probability and of the other's."""


def log_sums(rows_NE: Tensor, others_ME: Tensor, scale: Tensor) -> Tensor:
    """Return the log-sum-exp of scale · (row · other) over all others, for each row."""
    buffer, found = _buffer(rows_NE, others_ME), rows_NE.new_empty(rows_NE.shape[0])
    for block in _blocks(rows_NE.shape[0]):
        block_NM = _similarities(rows_NE[block], others_ME, scale, buffer)
        highest_N1 = block_NM.amax(1, keepdim=True)
        found[block] = block_NM.sub_(highest_N1).exp_().sum(1).log_().add_(highest_N1[:, 0])
    return found


def both_log_sums(first_NE: Tensor, second_ME: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-sum-exps of the rows and of the columns, from one product."""
    buffer, row_N = _buffer(first_NE, second_ME), first_NE.new_empty(first_NE.shape[0])
    total_M, highest_M = second_ME.new_zeros(second_ME.shape[0]), second_ME.new_full(second_ME.shape[:1], -torch.inf)
    shift = _fixed_shift(first_NE, second_ME, scale)
    for block in _blocks(first_NE.shape[0]):
        block_NM = _similarities(first_NE[block], second_ME, scale, buffer)
        if shift is not None:
            block_NM.sub_(shift).exp_()
            row_N[block] = block_NM.sum(1).log_().add_(shift)
            total_M += block_NM.sum(0)
            continue
        higher_M = torch.maximum(highest_M, block_NM.amax(0))
        row_N[block] = block_NM.logsumexp(1)
        total_M = total_M * (highest_M - higher_M).exp() + block_NM.sub_(higher_M).exp_().sum(0)
        highest_M = higher_M
    return row_N, total_M.log() + (highest_M if shift is None else shift)


def hard_log_sums(
    rows_NE: Tensor, others_ME: Tensor, scale: Tensor, identity_N: Tensor, identity_M: Tensor, hardness: float
) -> Tensor:
    """Return `hard_logs` of each row, (N, 3)."""
    buffer, sums_N4 = _buffer(rows_NE, others_ME), rows_NE.new_empty(rows_NE.shape[0], 4)
    for block in _blocks(rows_NE.shape[0]):
        block_NM = _similarities(rows_NE[block], others_ME, scale, buffer)
        same_NM = identity_N[block, None] == identity_M
        sums_N4[block, 0] = block_NM.masked_fill(~same_NM, -torch.inf).logsumexp(1)
        block_NM.masked_fill_(same_NM, -torch.inf)
        sums_N4[block, 1] = (block_NM * (1.0 + hardness)).logsumexp(1)
        sums_N4[block, 2] = block_NM.mul_(hardness).logsumexp(1)
        sums_N4[block, 3] = (~same_NM).sum(1)
    return hard_logs(sums_N4)


def hard_logs(sums_N4: Tensor) -> Tensor:
    """Return, for each row, the logarithm of its denominator, and what probabilities of its negatives are found with.

    `sums_N4`: logsumexp s over the positives; A = logsumexp (1 + β) s and B = logsumexp β s over the negatives; their
    number n. The denominator is exp(lr) = Σ exp s + n exp(A − B), and with its second part's share of it

        exp(lr) · d lr / d s_ij = (1 + β) exp((1 + β) s_ij − u) − β exp(β s_ij − v)        for a negative j

    where the third and the fourth of what follows are u and v. Without a negative they are infinite, and give nothing.
    """
    positive_N, harder_N, weighing_N, number_N = sums_N4.unbind(1)
    has_N, log_number_N = number_N > 0, number_N.log()
    negative_N = torch.where(has_N, log_number_N + harder_N - weighing_N, -torch.inf)
    total_N = torch.logaddexp(positive_N, negative_N)
    first_N = total_N + weighing_N - log_number_N
    second_N = first_N + weighing_N - harder_N
    return torch.stack([total_N, *(torch.where(has_N, one, torch.inf) for one in (first_N, second_N))], 1)


def sigmoid_sums(rows_NE: Tensor, others_ME: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return Σ log(1 + exp(s + bias)) and Σ sigmoid(s + bias) over all others, for each row: (N, 2)."""
    buffer, found_N2 = _buffer(rows_NE, others_ME), rows_NE.new_empty(rows_NE.shape[0], 2)
    for block in _blocks(rows_NE.shape[0]):
        block_NM = _similarities(rows_NE[block], others_ME, scale, buffer).add_(bias)
        found_N2[block, 0] = functional.softplus(block_NM, threshold=SOFTPLUS_IS_LINEAR).sum(1)
        found_N2[block, 1] = block_NM.sigmoid_().sum(1)
    return found_N2


def own_gradient(side: Side, scale: Tensor, form: Form) -> Tensor:
    """Return Σ_j g_ij b_j of this side's rows, where g is what the loss's gradient holds without its targets."""
    return _gradients(side, scale, form, None)


def both_gradients(side: Side, scale: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Return the same for both sides, when this rank holds all rows of both."""
    into_others_ME = torch.zeros_like(side.others_ME)
    return _gradients(side, scale, form, into_others_ME), into_others_ME


def _gradients(side: Side, scale: Tensor, form: Form, into_others_ME: Tensor | None) -> Tensor:
    """Those of the rows, and added to `into_others_ME` those of the others, by these rows alone."""
    buffers = _buffer(side.rows_NE, side.others_ME), _buffer(side.rows_NE, side.others_ME)
    into_NE, is_plain = torch.empty_like(side.rows_NE), form.bias is None and not form.hardness
    shift = _fixed_shift(side.rows_NE, side.others_ME, scale) if is_plain else None
    for block in _blocks(side.rows_NE.shape[0]):
        block_NM = _similarities(side.rows_NE[block], side.others_ME, scale, buffers[0])
        if form.bias is not None:
            probability_NM = block_NM.add_(form.bias).sigmoid_()
        elif form.hardness:
            probability_NM = _hard_probabilities(block_NM, side, block, form.hardness)
        else:
            probability_NM = _probabilities(block_NM, side, block, shift, buffers[1])
        torch.mm(probability_NM, side.others_ME, out=into_NE[block])
        if into_others_ME is not None:
            into_others_ME.addmm_(probability_NM.T, side.rows_NE[block])
    return into_NE


def _probabilities(block_NM: Tensor, side: Side, block: slice, shift: Tensor | None, buffer: Tensor) -> Tensor:
    """w_row exp(s_ij − row_log_i) + w_other exp(s_ij − other_log_j) of a block of similarities, which it overwrites."""
    other_NM, (row_weight, other_weight) = buffer[: block_NM.numel()].view_as(block_NM), side.weights
    row_log_N1 = side.row_logs[block, None]
    if shift is not None:
        row_N1, other_M = (shift - row_log_N1).exp_().mul_(row_weight), (shift - side.other_logs).exp_()
        return block_NM.sub_(shift).exp_().mul_(torch.add(row_N1, other_M, alpha=other_weight, out=other_NM))
    torch.sub(block_NM, side.other_logs, out=other_NM).exp_()
    return block_NM.sub_(row_log_N1).exp_().mul_(row_weight).add_(other_NM, alpha=other_weight)


def _hard_probabilities(block_NM: Tensor, side: Side, block: slice, hardness: float) -> Tensor:
    same_NM = side.identity_N[block, None] == side.identity_M
    found_NM = torch.zeros_like(block_NM)
    for logs, weight in zip((side.row_logs[block, None], side.other_logs[None]), side.weights, strict=True):
        log_NM, first_NM, second_NM = logs.unbind(2)
        negative_NM = ((1.0 + hardness) * block_NM).sub_(first_NM).exp_().mul_(1.0 + hardness)
        negative_NM.sub_((hardness * block_NM).sub_(second_NM).exp_(), alpha=hardness)
        found_NM.add_(torch.where(same_NM, (block_NM - log_NM).exp_(), negative_NM), alpha=weight)
    return found_NM


def _blocks(num_rows: int) -> list[slice]:
    return [slice(start, min(start + ROWS_PER_BLOCK, num_rows)) for start in range(0, num_rows, ROWS_PER_BLOCK)]


def _buffer(rows_NE: Tensor, others_ME: Tensor) -> Tensor:
    return rows_NE.new_empty(min(ROWS_PER_BLOCK, rows_NE.shape[0]) * others_ME.shape[0])


def _similarities(rows_NE: Tensor, others_ME: Tensor, scale: Tensor, buffer: Tensor) -> Tensor:
    """A block of similarities, in the buffer's memory."""
    block_NM = buffer[: rows_NE.shape[0] * others_ME.shape[0]].view(rows_NE.shape[0], others_ME.shape[0])
    return torch.mm(rows_NE * scale, others_ME.T, out=block_NM)


def _fixed_shift(rows_NE: Tensor, others_ME: Tensor, scale: Tensor) -> Tensor | None:
    """A bound on all |s|, if exponentials can do with it. Looked at on the CPU only: a GPU would have to wait."""
    if scale.device.type != "cpu" or rows_NE.shape[0] == 0 or others_ME.shape[0] == 0:
        return None
    bound = scale * rows_NE.norm(dim=1).amax() * others_ME.norm(dim=1).amax()
    return bound if bound <= FIXED_SHIFT_LIMIT else None
