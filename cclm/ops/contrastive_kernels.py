"""The walks of the contrastive loss as Triton kernels: what is summed over rows, and the gradient of rows.

A program holds BM rows and walks over the columns in blocks of BN; products run over the features in blocks of BK. All
is float32: products on tensor cores take three passes (tf32x3), whose error is float32's. Rounding probabilities to
bfloat16 would save two of them, and cost the gradient of rows that are almost right, a difference of near numbers.
Offsets are 64 bits wide: rows times width passes 2^31 at large batches.

The same source runs in Triton's interpreter. Importing this module needs `triton`; `cclm.ops.contrastive` asks for it
on CUDA only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cclm.ops.contrastive_blocks import LARGEST_WIDTH, Form, Side, hard_logs

SOFTMAX, HARD, SIGMOID = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _similarities(
    a_ptr, b_ptr, row, column, num_rows, num_columns, scale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BM x BN similarities of the rows and columns, minus infinity outside: there nothing may overflow."""
    products = tl.zeros((BM, BN), tl.float32)
    is_row, is_column = row < num_rows, column < num_columns
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(a_ptr + row[:, None].to(tl.int64) * D + k[None], is_row[:, None] & (k < D)[None], 0.0)
        b = tl.load(b_ptr + column[:, None].to(tl.int64) * D + k[None], is_column[:, None] & (k < D)[None], 0.0)
        products = tl.dot(a, tl.trans(b), products, input_precision="tf32x3")
    return tl.where(is_row[:, None] & is_column[None], products * scale, float("-inf"))


@triton.jit
def _added(highest, total, s):
    """Running log-sum-exps, which are highest + log(total), with a block more of similarities."""
    higher = tl.maximum(highest, tl.max(s, 1))
    return higher, total * tl.exp(highest - higher) + tl.sum(tl.exp(s - higher[:, None]), 1)


@triton.jit
def log_sum_kernel(
    a_ptr, b_ptr, scale_ptr, out_ptr, num_rows, num_columns,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out_i = logsumexp_j scale · a_i · b_j."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    scale = tl.load(scale_ptr)
    highest = tl.full((BM,), -1e30, tl.float32)  # not minus infinity: rows outside would compute inf - inf
    total = tl.zeros((BM,), tl.float32)
    for start in range(0, num_columns, BN):
        column = start + tl.arange(0, BN)
        s = _similarities(a_ptr, b_ptr, row, column, num_rows, num_columns, scale, D, BM, BN, BK)
        highest, total = _added(highest, total, s)
    tl.store(out_ptr + row, highest + tl.log(total), row < num_rows)


@triton.jit
def hard_sum_kernel(
    a_ptr, b_ptr, scale_ptr, row_identity_ptr, column_identity_ptr, out_ptr, num_rows, num_columns, hardness,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out_i = what `hard_logs` takes: three log-sum-exps, and the number of negatives."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    scale = tl.load(scale_ptr)
    row_identity = tl.load(row_identity_ptr + row, row < num_rows, 0)
    lowest, zero = tl.full((BM,), -1e30, tl.float32), tl.zeros((BM,), tl.float32)
    positive, positive_total, harder, harder_total = lowest, zero, lowest, zero
    weighing, weighing_total, number = lowest, zero, zero
    for start in range(0, num_columns, BN):
        column = start + tl.arange(0, BN)
        s = _similarities(a_ptr, b_ptr, row, column, num_rows, num_columns, scale, D, BM, BN, BK)
        is_same = row_identity[:, None] == tl.load(column_identity_ptr + column, column < num_columns, 0)[None]
        positive, positive_total = _added(positive, positive_total, tl.where(is_same, s, float("-inf")))
        s = tl.where(is_same, float("-inf"), s)
        harder, harder_total = _added(harder, harder_total, (1.0 + hardness) * s)
        weighing, weighing_total = _added(weighing, weighing_total, hardness * s)
        number += tl.sum(tl.where(s > float("-inf"), 1.0, 0.0), 1)
    out_ptr += row.to(tl.int64) * 4
    tl.store(out_ptr, positive + tl.log(positive_total), row < num_rows)
    tl.store(out_ptr + 1, harder + tl.log(harder_total), row < num_rows)
    tl.store(out_ptr + 2, weighing + tl.log(weighing_total), row < num_rows)
    tl.store(out_ptr + 3, number, row < num_rows)


@triton.jit
def sigmoid_sum_kernel(
    a_ptr, b_ptr, scale_ptr, bias_ptr, out_ptr, num_rows, num_columns,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out_i = Σ_j log(1 + exp(s_ij + bias)) and Σ_j sigmoid(s_ij + bias)."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    scale, bias = tl.load(scale_ptr), tl.load(bias_ptr)
    losses, probabilities = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    for start in range(0, num_columns, BN):
        column = start + tl.arange(0, BN)
        s = _similarities(a_ptr, b_ptr, row, column, num_rows, num_columns, scale, D, BM, BN, BK) + bias
        small = tl.exp(-tl.abs(s))  # 0 outside, where s is minus infinity
        more = 1.0 + small
        # log(1 + x) loses the last digits of x, which are most of them for a negative; this correction is Kahan's
        log = tl.where(more == 1.0, small, tl.log(more) * (small / (more - 1.0)))
        losses += tl.sum(tl.maximum(s, 0.0) + log, 1)
        probabilities += tl.sum(tl.where(s > 0, 1.0, small) / more, 1)
    tl.store(out_ptr + row.to(tl.int64) * 2, losses, row < num_rows)
    tl.store(out_ptr + row.to(tl.int64) * 2 + 1, probabilities, row < num_rows)


@triton.jit
def _hard_probabilities(s, is_same, log, first, second, hardness):
    """exp(s - log) of positives, and what `hard_logs` says of negatives."""
    harder = (1.0 + hardness) * tl.exp((1.0 + hardness) * s - first)
    return tl.where(is_same, tl.exp(s - log), harder - hardness * tl.exp(hardness * s - second))


@triton.jit
def gradient_kernel(
    a_ptr, b_ptr, scale_ptr, bias_ptr, row_identity_ptr, column_identity_ptr, row_log_ptr, column_log_ptr, out_ptr,
    num_rows, num_columns, row_weight, column_weight, hardness,
    FORM: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out_i = Σ_j (w_row exp(s_ij - row_log_i) + w_column exp(s_ij - column_log_j)) b_j; WIDTH: D, a power of two.

    In the other forms their probabilities in place of the exponentials; what a form does not read may be anything.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    is_row = row < num_rows
    scale = tl.load(scale_ptr)
    if FORM == SOFTMAX:
        row_log = tl.load(row_log_ptr + row, is_row, 0.0)
    elif FORM == HARD:
        row_identity = tl.load(row_identity_ptr + row, is_row, 0)
        row_log = tl.load(row_log_ptr + row * 3, is_row, 0.0)
        row_first = tl.load(row_log_ptr + row * 3 + 1, is_row, 0.0)
        row_second = tl.load(row_log_ptr + row * 3 + 2, is_row, 0.0)
    else:
        bias = tl.load(bias_ptr)
    d = tl.arange(0, WIDTH)
    into = tl.zeros((BM, WIDTH), tl.float32)
    for start in range(0, num_columns, BN):
        column = start + tl.arange(0, BN)
        is_column = column < num_columns
        s = _similarities(a_ptr, b_ptr, row, column, num_rows, num_columns, scale, D, BM, BN, BK)
        if FORM == SOFTMAX:
            column_log = tl.load(column_log_ptr + column, is_column, 0.0)
            weight = row_weight * tl.exp(s - row_log[:, None]) + column_weight * tl.exp(s - column_log[None])
        elif FORM == HARD:
            is_same = row_identity[:, None] == tl.load(column_identity_ptr + column, is_column, 0)[None]
            column_log = tl.load(column_log_ptr + column * 3, is_column, 0.0)
            column_first = tl.load(column_log_ptr + column * 3 + 1, is_column, 0.0)
            column_second = tl.load(column_log_ptr + column * 3 + 2, is_column, 0.0)
            weight = row_weight * _hard_probabilities(
                s, is_same, row_log[:, None], row_first[:, None], row_second[:, None], hardness
            ) + column_weight * _hard_probabilities(
                s, is_same, column_log[None], column_first[None], column_second[None], hardness
            )
        else:
            s += bias
            small = tl.exp(-tl.abs(s))
            weight = tl.where(s > 0, 1.0, small) / (1.0 + small)
        b = tl.load(b_ptr + column[:, None].to(tl.int64) * D + d[None], is_column[:, None] & (d < D)[None], 0.0)
        into = tl.dot(weight, b, into, input_precision="tf32x3")
    tl.store(out_ptr + row[:, None].to(tl.int64) * D + d[None], into, is_row[:, None] & (d < D)[None])


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Sizes of a kernel's blocks: the largest that compile for sm_80 and sm_90 without spills at `LARGEST_WIDTH`."""

    rows: int
    columns: int
    features: int
    num_warps: int
    num_stages: int


LOG_SUM_TILE = Tile(rows=64, columns=64, features=32, num_warps=4, num_stages=2)
HARD_SUM_TILE = Tile(rows=64, columns=64, features=32, num_warps=8, num_stages=2)
GRADIENT_TILE = Tile(rows=32, columns=32, features=32, num_warps=8, num_stages=1)


def fits(features: Tensor) -> bool:
    """Return whether the kernels take such features."""
    return features.dtype == torch.float32 and features.shape[0] > 0 and features.shape[1] <= LARGEST_WIDTH


def log_sums(rows_NE: Tensor, others_ME: Tensor, scale: Tensor, tile: Tile = LOG_SUM_TILE) -> Tensor:
    """Return the log-sum-exp of scale · (row · other) over all others, for each row."""
    found = rows_NE.new_empty(rows_NE.shape[0])
    _sum(log_sum_kernel, rows_NE, others_ME, scale, (), found, (), tile)
    return found


def hard_log_sums(
    rows_NE: Tensor,
    others_ME: Tensor,
    scale: Tensor,
    identity_N: Tensor,
    identity_M: Tensor,
    hardness: float,
    tile: Tile = HARD_SUM_TILE,
) -> Tensor:
    """Return `hard_logs` of each row, (N, 3)."""
    found = rows_NE.new_empty(rows_NE.shape[0], 4)
    identities = identity_N.contiguous(), identity_M.contiguous()
    _sum(hard_sum_kernel, rows_NE, others_ME, scale, identities, found, (hardness,), tile)
    return hard_logs(found)


def sigmoid_sums(rows_NE: Tensor, others_ME: Tensor, scale: Tensor, bias: Tensor, tile: Tile = LOG_SUM_TILE) -> Tensor:
    """Return Σ log(1 + exp(s + bias)) and Σ sigmoid(s + bias) over all others, for each row: (N, 2)."""
    found = rows_NE.new_empty(rows_NE.shape[0], 2)
    _sum(sigmoid_sum_kernel, rows_NE, others_ME, scale, (bias,), found, (), tile)
    return found


def _sum(
    kernel: Any,
    rows_NE: Tensor,
    others_ME: Tensor,
    scale: Tensor,
    more: tuple[Tensor, ...],
    found: Tensor,
    numbers: tuple[float, ...],
    tile: Tile,
) -> None:
    kernel[(triton.cdiv(rows_NE.shape[0], tile.rows),)](
        rows_NE.contiguous(), others_ME.contiguous(), scale, *more, found, rows_NE.shape[0], others_ME.shape[0],
        *numbers, D=rows_NE.shape[1], BM=tile.rows, BN=tile.columns, BK=tile.features,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def own_gradient(side: Side, scale: Tensor, form: Form, tile: Tile = GRADIENT_TILE) -> Tensor:
    """Return Σ_j g_ij b_j of a side's rows, where g is what the loss's gradient holds without its targets."""
    rows_NE, others_ME = side.rows_NE.contiguous(), side.others_ME.contiguous()
    width, found = rows_NE.shape[1], torch.empty_like(rows_NE)
    kind = SIGMOID if form.bias is not None else HARD if form.hardness else SOFTMAX
    gradient_kernel[(triton.cdiv(rows_NE.shape[0], tile.rows),)](
        rows_NE, others_ME, scale, scale if form.bias is None else form.bias,
        side.identity_N.contiguous(), side.identity_M.contiguous(),
        side.row_logs.contiguous(), side.other_logs.contiguous(), found,
        rows_NE.shape[0], others_ME.shape[0], *side.weights, form.hardness,
        FORM=kind, D=width, WIDTH=max(16, triton.next_power_of_2(width)),
        BM=tile.rows, BN=tile.columns, BK=tile.features, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return found
