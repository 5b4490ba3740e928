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

The walks are plain torch, or on CUDA the Triton kernels of `contrastive_kernels`. `contrastive_reference` is the slow
twin: whole matrices, PyTorch's own gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

ROWS_PER_BLOCK = 512
LARGEST_WIDTH = 256
"""Of features that the kernels take: they hold the gradient of a block's rows whole, and wider ones would spill."""
FIXED_SHIFT_LIMIT = 30.0
"""Up to this bound on |s|, exp(s − bound) cannot underflow: one exponential then serves both directions."""


class AllRows(NamedTuple):
    """The rows of all ranks (and micro-batches), this one's among them; without gradient."""

    first_NE: Tensor
    second_ME: Tensor
    identity_N: Tensor
    identity_M: Tensor
    first_logs: tuple[Tensor, Tensor]
    """Log-sum-exps over all second rows, of this rank's first rows and of all of them."""
    second_logs: tuple[Tensor, Tensor]
    """Log-sum-exps over all first rows, of this rank's second rows and of all of them."""


ContrastiveLoss: TypeAlias = Callable[..., Tensor]
"""(first (N, E), second (M, E), identity (N,), identity (M,), temperature (1,), everything=, label_smoothing=) → a
scalar, ½ (Σ over this rank's first rows + ρ · Σ over its second rows). Summed over the ranks it is the loss."""
LogSums: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(rows (N, E), others (M, E), scale ()) → log-sum-exps (N,)."""


def contrastive_loss(
    first_NE: Float[Tensor, "n e"],
    second_ME: Float[Tensor, "m e"],
    identity_N: Int[Tensor, " n"],
    identity_M: Int[Tensor, " m"],
    temperature: Float[Tensor, " 1"],
    *,
    everything: AllRows | None = None,
    label_smoothing: float = 0.0,
    is_kernel_wanted: bool = True,
) -> Float[Tensor, ""]:
    """½ (Σ over first rows + ρ · Σ over second rows) of cross-entropy with soft targets, in the features' type.

    Args:
        first_NE, second_ME: this rank's features of the two sides, float32 or float64.
        identity_N, identity_M: what each row of them shows; each has an equal on the other side, on some rank (the loss
            of a row without one is NaN).
        temperature: one number; similarities are divided by it.
        everything: the rows of all ranks; None: these are all. The gradient is the true one where every rank multiplies
            its result by the same factor, as means over the global batch do.
        label_smoothing: share of each target that is spread over all columns.
        is_kernel_wanted: use the Triton kernels where they take such features; else always the blocks in plain torch.
    """
    loss: Tensor = _Contrastive.apply(  # type: ignore[no-untyped-call]
        first_NE, second_ME, identity_N, identity_M, temperature, everything, label_smoothing, is_kernel_wanted
    )
    return loss


def contrastive_reference(
    first_NE: Float[Tensor, "n e"],
    second_ME: Float[Tensor, "m e"],
    identity_N: Int[Tensor, " n"],
    identity_M: Int[Tensor, " m"],
    temperature: Float[Tensor, " 1"],
    *,
    everything: AllRows | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The slow twin of `contrastive_loss`; the rows of `everything` may need gradients here."""
    all_first, all_second, all_identity_N, all_identity_M = (
        (first_NE, second_ME, identity_N, identity_M) if everything is None else everything[:4]
    )
    forth = _soft_cross_entropy(
        first_NE @ all_second.T / temperature, identity_N[:, None] == all_identity_M, label_smoothing
    )
    back = _soft_cross_entropy(
        second_ME @ all_first.T / temperature, identity_M[:, None] == all_identity_N, label_smoothing
    )
    return 0.5 * (forth + all_first.shape[0] / max(1, all_second.shape[0]) * back)


def _soft_cross_entropy(logits_NM: Tensor, same_NM: Tensor, label_smoothing: float) -> Tensor:
    """Sum over rows of the cross-entropy against even weights on `same_NM`, and a share for all columns."""
    same_NM = same_NM.to(logits_NM.dtype)
    target_NM = same_NM * ((1.0 - label_smoothing) / same_NM.sum(1, keepdim=True)) + label_smoothing / same_NM.shape[1]
    return (logits_NM.logsumexp(1) - (target_NM * logits_NM).sum(1)).sum()


class _Side(NamedTuple):
    """One side's rows of this rank, and all rows of the other: what one walk of backward needs."""

    rows_NE: Tensor
    others_ME: Tensor
    row_log_N: Tensor
    """Log-sum-exp of each row over all others."""
    other_log_M: Tensor
    """Log-sum-exp of each of the others over all rows of this side."""
    weights: tuple[float, float]
    """Of a row's own probability and of the other's."""


class _Contrastive(torch.autograd.Function):
    """Forward keeps log-sum-exps; backward computes the similarities again."""

    @staticmethod
    def forward(
        ctx: Any,
        first_NE: Tensor,
        second_ME: Tensor,
        identity_N: Tensor,
        identity_M: Tensor,
        temperature: Tensor,
        everything: AllRows | None,
        label_smoothing: float,
        is_kernel_wanted: bool,
    ) -> Tensor:
        """The local sum."""
        all_rows = (first_NE, second_ME, identity_N, identity_M) if everything is None else everything[:4]
        all_first, all_second = all_rows[:2]
        targets = _Targets(*all_rows, label_smoothing)
        scale = temperature.to(first_NE.dtype).reciprocal()[0]
        ratio = all_first.shape[0] / max(1, all_second.shape[0])
        # one process without a kernel: one product serves both directions
        kernels = _kernels_for(first_NE) if is_kernel_wanted else None
        is_alone = everything is None and kernels is None
        if everything is not None:
            (row_N, all_row), (column_M, all_column) = everything.first_logs, everything.second_logs
        elif is_alone:
            row_N, column_M = all_row, all_column = _both_log_sums(first_NE, second_ME, scale)
        else:
            row_N, column_M = all_row, all_column = (
                _log_sums(first_NE, all_second, scale, kernels),
                _log_sums(second_ME, all_first, scale, kernels),
            )
        class_N, class_M = targets.class_of(identity_N), targets.class_of(identity_M)
        forth = (row_N - scale * (first_NE * targets.of_first(class_N, 1.0, 0.0)).sum(1)).sum()
        back = (column_M - scale * (second_ME * targets.of_second(class_M, 0.0, 1.0)).sum(1)).sum()
        ctx.is_alone, ctx.ratio, ctx.kernels = is_alone, ratio, kernels
        ctx.save_for_backward(
            first_NE, second_ME, all_first, all_second, row_N, column_M, all_row, all_column, scale, temperature,
            targets.of_first(class_N, 1.0, ratio), targets.of_second(class_M, 1.0, ratio),
        )  # fmt: skip
        return 0.5 * (forth + ratio * back)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Walk over the similarities again."""
        first, second, all_first, all_second, row, column, all_row, all_column, scale, temperature, *targets = (
            ctx.saved_tensors
        )
        side = _Side(first, all_second, row, all_column, (1.0, ctx.ratio))
        if ctx.is_alone:
            into_first, into_second = _both_gradients(side, scale)
        else:
            other_side = _Side(second, all_first, column, all_row, (ctx.ratio, 1.0))
            into_first, into_second = (_own_gradient(one, scale, ctx.kernels) for one in (side, other_side))
        factor = 0.5 * grad_loss * scale
        into_first = into_first.sub_(targets[0]).mul_(factor)
        into_second = into_second.sub_(targets[1]).mul_(factor)
        # both directions of the local first rows; the other ranks have the rest
        into_temperature = (-scale * (first * into_first).sum()).to(temperature.dtype).view_as(temperature)
        return into_first, into_second, None, None, into_temperature, None, None, None


class _Targets:
    """Products with soft targets without their matrix: sums of the features of each class of equal identities.

    A class is the place of its first member among the sorted identities of the second side, so that no number of
    classes has to leave the device.
    """

    def __init__(
        self, first_NE: Tensor, second_ME: Tensor, identity_N: Tensor, identity_M: Tensor, label_smoothing: float
    ) -> None:
        self._ordered = identity_M.sort().values
        self._padded = functional.pad(self._ordered, (0, 1))
        self._even, self._rest = 1.0 - label_smoothing, label_smoothing
        self._first_CE, self._num_first_C1 = self._sums(first_NE, identity_N)
        self._second_CE, self._num_second_C1 = self._sums(second_ME, identity_M)
        self._mean_first, self._mean_second = first_NE.mean(0), second_ME.mean(0)
        self._ratio = max(1, first_NE.shape[0]) / max(1, second_ME.shape[0])

    def class_of(self, identity: Tensor) -> Tensor:
        """The class of each row; one without an equal on the second side gets the last, which is empty.

        Not by `torch.isin`: on CUDA it counts distinct values, and the host waits for their number.
        """
        place, size = torch.searchsorted(self._ordered, identity), self._ordered.shape[0]
        return torch.where((place < size) & (self._padded[place] == identity), place, size)

    def _sums(self, features: Tensor, identity: Tensor) -> tuple[Tensor, Tensor]:
        place, size = self.class_of(identity), self._ordered.shape[0] + 1
        sums = features.new_zeros(size, features.shape[1]).index_add_(0, place, features)
        counts = features.new_zeros(size, 1).index_add_(0, place, torch.ones_like(features[:, :1]))
        sums[-1], counts[-1] = 0.0, 0.0  # a mean over nothing is NaN: such a row must not train in silence
        return sums, counts

    def of_first(self, class_N: Tensor, row: float, column: float) -> Tensor:
        """Σ_j (row · t_ij + column · u_ij) b_j."""
        weight_N1 = row / self._num_second_C1[class_N] + column / self._num_first_C1[class_N]
        rest = self._rest * (row + column / self._ratio)
        return self._even * weight_N1 * self._second_CE[class_N] + rest * self._mean_second

    def of_second(self, class_M: Tensor, row: float, column: float) -> Tensor:
        """Σ_i (row · t_ij + column · u_ij) a_i."""
        weight_M1 = row / self._num_second_C1[class_M] + column / self._num_first_C1[class_M]
        rest = self._rest * (row * self._ratio + column)
        return self._even * weight_M1 * self._first_CE[class_M] + rest * self._mean_first


@cache
def _triton_kernels() -> ModuleType | None:
    """The walks as Triton kernels, where Triton is installed."""
    try:
        from cclm.ops import contrastive_kernels
    except ImportError:
        return None
    return contrastive_kernels


def _kernels_for(features: Tensor) -> ModuleType | None:
    """The kernels, if they take such features."""
    kernels = _triton_kernels() if features.is_cuda else None
    return kernels if kernels is not None and kernels.fits(features) else None


def _blocks(num_rows: int) -> list[slice]:
    return [slice(start, min(start + ROWS_PER_BLOCK, num_rows)) for start in range(0, num_rows, ROWS_PER_BLOCK)]


def _fixed_shift(rows_NE: Tensor, others_ME: Tensor, scale: Tensor) -> Tensor | None:
    """A bound on all |s|, if exponentials can do with it. Looked at on the CPU only: a GPU would have to wait."""
    if scale.device.type != "cpu" or rows_NE.shape[0] == 0 or others_ME.shape[0] == 0:
        return None
    bound = scale * rows_NE.norm(dim=1).amax() * others_ME.norm(dim=1).amax()
    return bound if bound <= FIXED_SHIFT_LIMIT else None


def _similarities(rows_NE: Tensor, others_ME: Tensor, scale: Tensor, buffer: Tensor) -> Tensor:
    """A block of similarities, in the buffer's memory."""
    block_NM = buffer[: rows_NE.shape[0] * others_ME.shape[0]].view(rows_NE.shape[0], others_ME.shape[0])
    return torch.mm(rows_NE * scale, others_ME.T, out=block_NM)


def _buffer(rows_NE: Tensor, others_ME: Tensor) -> Tensor:
    return rows_NE.new_empty(min(ROWS_PER_BLOCK, rows_NE.shape[0]) * others_ME.shape[0])


def log_sums(rows_NE: Tensor, others_ME: Tensor, scale: Tensor, *, is_kernel_wanted: bool = True) -> Tensor:
    """Return the log-sum-exp of scale · (row · other) over all others, for each row: what `AllRows` holds."""
    return _log_sums(rows_NE, others_ME, scale, _kernels_for(rows_NE) if is_kernel_wanted else None)


def _log_sums(rows_NE: Tensor, others_ME: Tensor, scale: Tensor, kernels: ModuleType | None) -> Tensor:
    if kernels is not None:
        logs: Tensor = kernels.log_sums(rows_NE, others_ME, scale)
        return logs
    buffer, found = _buffer(rows_NE, others_ME), rows_NE.new_empty(rows_NE.shape[0])
    for block in _blocks(rows_NE.shape[0]):
        block_NM = _similarities(rows_NE[block], others_ME, scale, buffer)
        highest_N1 = block_NM.amax(1, keepdim=True)
        found[block] = block_NM.sub_(highest_N1).exp_().sum(1).log_().add_(highest_N1[:, 0])
    return found


def _both_log_sums(first_NE: Tensor, second_ME: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of the rows and of the columns, from one product."""
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


def _probabilities(block_NM: Tensor, side: _Side, block: slice, shift: Tensor | None, buffer: Tensor) -> Tensor:
    """w_row exp(s_ij − row_log_i) + w_other exp(s_ij − other_log_j) of a block of similarities, which it overwrites."""
    other_NM, (row_weight, other_weight) = buffer[: block_NM.numel()].view_as(block_NM), side.weights
    row_log_N1 = side.row_log_N[block, None]
    if shift is not None:
        row_N1, other_M = (shift - row_log_N1).exp_().mul_(row_weight), (shift - side.other_log_M).exp_()
        return block_NM.sub_(shift).exp_().mul_(torch.add(row_N1, other_M, alpha=other_weight, out=other_NM))
    torch.sub(block_NM, side.other_log_M, out=other_NM).exp_()
    return block_NM.sub_(row_log_N1).exp_().mul_(row_weight).add_(other_NM, alpha=other_weight)


def _own_gradient(side: _Side, scale: Tensor, kernels: ModuleType | None) -> Tensor:
    """Σ_j (probabilities)_ij b_j of this side's rows."""
    if kernels is not None:
        into: Tensor = kernels.own_gradient(*side, scale)
        return into
    return _gradients(side, scale, None)


def _both_gradients(side: _Side, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The same for both sides, when this rank holds all rows of both."""
    into_others_ME = torch.zeros_like(side.others_ME)
    return _gradients(side, scale, into_others_ME), into_others_ME


def _gradients(side: _Side, scale: Tensor, into_others_ME: Tensor | None) -> Tensor:
    """Those of the rows, and added to `into_others_ME` those of the others, by these rows alone."""
    buffers = _buffer(side.rows_NE, side.others_ME), _buffer(side.rows_NE, side.others_ME)
    into_NE, shift = torch.empty_like(side.rows_NE), _fixed_shift(side.rows_NE, side.others_ME, scale)
    for block in _blocks(side.rows_NE.shape[0]):
        block_NM = _similarities(side.rows_NE[block], side.others_ME, scale, buffers[0])
        probability_NM = _probabilities(block_NM, side, block, shift, buffers[1])
        torch.mm(probability_NM, side.others_ME, out=into_NE[block])
        if into_others_ME is not None:
            into_others_ME.addmm_(probability_NM.T, side.rows_NE[block])
    return into_NE
