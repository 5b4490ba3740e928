"""The contrastive loss as two operators that torch.compile and torch.export see through, `cclm::contrastive…`.

Forward keeps log-sum-exps; backward computes the similarities again. `contrastive` has the formulas. This file is
imported once a process: it registers what is called by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from cclm.ops import contrastive_blocks as blocks
from cclm.ops.contrastive_blocks import Form, Side


@cache
def triton_kernels() -> ModuleType | None:
    """The walks as Triton kernels, where Triton is installed."""
    try:
        from cclm.ops import contrastive_kernels
    except ImportError:
        return None
    return contrastive_kernels


def kernels_for(features: Tensor) -> ModuleType | None:
    """The kernels, if they take such features."""
    kernels = triton_kernels() if features.is_cuda else None
    return kernels if kernels is not None and kernels.fits(features) else None


def _walks(features: Tensor, is_kernel_wanted: bool) -> ModuleType:
    return (kernels_for(features) if is_kernel_wanted else None) or blocks


def log_sums(
    rows_NE: Tensor,
    others_ME: Tensor,
    scale: Tensor,
    identity_N: Tensor,
    identity_M: Tensor,
    *,
    hardness: float = 0.0,
    is_kernel_wanted: bool = True,
) -> Tensor:
    """Return the log-sum-exp of scale · (row · other) over all others, for each row: what `AllRows` holds.

    With hardness: `contrastive_blocks.hard_logs`, (N, 3).
    """
    walks: Any = _walks(rows_NE, is_kernel_wanted)
    logs: Tensor
    if hardness:
        logs = walks.hard_log_sums(rows_NE, others_ME, scale, identity_N, identity_M, hardness)
    else:
        logs = walks.log_sums(rows_NE, others_ME, scale)
    return logs


class Targets:
    """Products with soft targets without their matrix: sums of the features of each class of equal identities.

    A class is the place of its first member among the sorted identities of the second side, so that no number of
    classes has to leave the device. `first_CE`, `num_first_C1`: its sum over the first side, and number of rows there.
    """

    def __init__(
        self, first_NE: Tensor, second_ME: Tensor, identity_N: Tensor, identity_M: Tensor, label_smoothing: float
    ) -> None:
        self._ordered = identity_M.sort().values
        self._padded = functional.pad(self._ordered, (0, 1))
        self._even, self._rest = 1.0 - label_smoothing, label_smoothing
        self.first_CE, self.num_first_C1 = self._sums(first_NE, identity_N)
        self.second_CE, self.num_second_C1 = self._sums(second_ME, identity_M)
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
        weight_N1 = row / self.num_second_C1[class_N] + column / self.num_first_C1[class_N]
        rest = self._rest * (row + column / self._ratio)
        return self._even * weight_N1 * self.second_CE[class_N] + rest * self._mean_second

    def of_second(self, class_M: Tensor, row: float, column: float) -> Tensor:
        """Σ_i (row · t_ij + column · u_ij) a_i."""
        weight_M1 = row / self.num_second_C1[class_M] + column / self.num_first_C1[class_M]
        rest = self._rest * (row * self._ratio + column)
        return self._even * weight_M1 * self.first_CE[class_M] + rest * self._mean_first


_GIVEN = "Tensor first, Tensor second, Tensor identity_n, Tensor identity_m, Tensor temperature, Tensor? bias"
_KNOWN = "Tensor[] everything"


@torch.library.custom_op(
    "cclm::contrastive",
    mutates_args=(),
    schema=f"({_GIVEN}, {_KNOWN}, float label_smoothing, float hardness, bool is_kernel_wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def contrastive_operator(
    first_NE: Tensor,
    second_ME: Tensor,
    identity_N: Tensor,
    identity_M: Tensor,
    temperature: Tensor,
    bias: Tensor | None,
    everything: Sequence[Tensor],
    label_smoothing: float,
    hardness: float,
    is_kernel_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the local sum; and for backward two tensors of the form's own, and Σ target · other of both sides."""
    all_rows = everything[:4] or (first_NE, second_ME, identity_N, identity_M)
    all_first, all_second, all_identity_N, all_identity_M = all_rows
    targets = Targets(all_first, all_second, all_identity_N, all_identity_M, label_smoothing)
    class_N, class_M = targets.class_of(identity_N), targets.class_of(identity_M)
    scale, none = temperature.to(first_NE.dtype).reciprocal()[0], first_NE.new_empty(0)
    if bias is not None:
        walks: Any = _walks(first_NE, is_kernel_wanted)
        sums_N2 = walks.sigmoid_sums(first_NE, all_second, scale, bias.to(scale.dtype))
        own_NE, other_ME = targets.second_CE[class_N], targets.first_CE[class_M]
        number_N = targets.num_second_C1[class_N, 0]
        positive_N = scale * (first_NE * own_NE).sum(1) + number_N * bias
        into_bias = (sums_N2[:, 1] - number_N).sum()[None]
        return (sums_N2[:, 0] - positive_N).sum(), into_bias, none, own_NE, other_ME
    if everything:
        row_logs, column_logs = everything[4], everything[6]
    elif hardness or _walks(first_NE, is_kernel_wanted) is not blocks:
        row_logs, column_logs = (
            log_sums(rows, others, scale, own, other, hardness=hardness, is_kernel_wanted=is_kernel_wanted)
            for rows, others, own, other in (
                (first_NE, all_second, identity_N, all_identity_M),
                (second_ME, all_first, identity_M, all_identity_N),
            )
        )
    else:  # one process without a kernel: one product serves both directions
        row_logs, column_logs = blocks.both_log_sums(first_NE, second_ME, scale)
    ratio = all_first.shape[0] / max(1, all_second.shape[0])
    row_N, column_M = (logs[:, 0] if hardness else logs for logs in (row_logs, column_logs))
    forth = (row_N - scale * (first_NE * targets.of_first(class_N, 1.0, 0.0)).sum(1)).sum()
    back = (column_M - scale * (second_ME * targets.of_second(class_M, 0.0, 1.0)).sum(1)).sum()
    kept = (none, none.clone()) if everything else (row_logs, column_logs)  # an operator's results are no arguments
    return (
        0.5 * (forth + ratio * back), *kept,
        targets.of_first(class_N, 1.0, ratio), targets.of_second(class_M, 1.0, ratio),
    )  # fmt: skip


@contrastive_operator.register_fake
def _(first_NE: Tensor, second_ME: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    bias, everything, hardness = rest[3], rest[4], rest[6]
    sizes: list[tuple[int, ...]] = [(1,), (0,)]
    if bias is None:
        sizes = [
            (0,) if everything else (side.shape[0], 3) if hardness else (side.shape[0],)
            for side in (first_NE, second_ME)
        ]
    kept = (first_NE.new_empty(size) for size in sizes)
    return first_NE.new_empty(()), *kept, torch.empty_like(first_NE), torch.empty_like(second_ME)


@torch.library.custom_op(
    "cclm::contrastive_gradient",
    mutates_args=(),
    schema=f"(Tensor grad_loss, {_GIVEN}, {_KNOWN}, Tensor[] kept, float hardness, bool is_kernel_wanted)"
    " -> (Tensor, Tensor, Tensor)",
)
def gradient_operator(
    grad_loss: Tensor,
    first_NE: Tensor,
    second_ME: Tensor,
    identity_N: Tensor,
    identity_M: Tensor,
    temperature: Tensor,
    bias: Tensor | None,
    everything: Sequence[Tensor],
    kept: Sequence[Tensor],
    hardness: float,
    is_kernel_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk over the similarities again: gradients of both sides and of the temperature."""
    all_rows = everything[:4] or (first_NE, second_ME, identity_N, identity_M)
    all_first, all_second, all_identity_N, all_identity_M = all_rows
    row, all_row, column, all_column = everything[4:] or (kept[0], kept[0], kept[1], kept[1])
    scale, ratio = temperature.to(first_NE.dtype).reciprocal()[0], all_first.shape[0] / max(1, all_second.shape[0])
    form, walks = Form(hardness, None if bias is None else bias.to(scale.dtype)), _walks(first_NE, is_kernel_wanted)
    sides = (
        Side(first_NE, all_second, identity_N, all_identity_M, row, all_column, (1.0, ratio)),
        Side(second_ME, all_first, identity_M, all_identity_N, column, all_row, (ratio, 1.0)),
    )
    if not everything and walks is blocks:
        into_first, into_second = blocks.both_gradients(sides[0], scale, form)
    else:
        into_first, into_second = (walks.own_gradient(side, scale, form) for side in sides)
    factor = (0.5 if bias is None else 1.0) * grad_loss * scale
    into_first = into_first.sub_(kept[2]).mul_(factor)
    into_second = into_second.sub_(kept[3]).mul_(factor)
    # both directions of the local first rows; the other ranks have the rest
    into_temperature = (-scale * (first_NE * into_first).sum()).to(temperature.dtype).view_as(temperature)
    return into_first, into_second, into_temperature


@gradient_operator.register_fake
def _(_: Tensor, first_NE: Tensor, second_ME: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(first_NE), torch.empty_like(second_ME), torch.empty_like(rest[2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *given, everything, _, ctx.hardness, ctx.is_kernel_wanted = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*given, *output[1:], *everything)


def _differentiate(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Any, ...]:
    given, kept, everything = ctx.saved_tensors[:6], list(ctx.saved_tensors[6:10]), list(ctx.saved_tensors[10:])
    first, second, temperature, bias = (None,) * 4
    if grad_loss is not None:
        first, second, temperature = gradient_operator(
            grad_loss, *given, everything, kept, ctx.hardness, ctx.is_kernel_wanted
        )
        bias = None if given[5] is None else (grad_loss * kept[0]).to(given[5].dtype)
    return first, second, None, None, temperature, bias, [None] * len(everything), None, None, None


contrastive_operator.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.cclm.contrastive)
def _forward_flops(first: Sequence[int], second: Sequence[int], *rest: Any, **_: Any) -> int:
    bias, everything, hardness = rest[3], rest[4], rest[6]
    products = 0 if everything and bias is None else 2 if hardness else 1
    return int(2 * products * first[0] * first[1] * (everything or [first, second])[1][0])


@register_flop_formula(torch.ops.cclm.contrastive_gradient)
def _gradient_flops(_: Any, first: Sequence[int], second: Sequence[int], *rest: Any, **__: Any) -> int:
    """Three products of one walk for both sides, or two of each of two walks."""
    if not rest[4]:
        return 6 * first[0] * first[1] * second[0]
    return int(4 * first[1] * (first[0] * rest[4][1][0] + second[0] * rest[4][0][0]))
