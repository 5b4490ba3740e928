"""The walks of the contrastive loss as Triton kernels: log-sum-exps of rows, and the gradient of rows.

A program holds BM rows and walks over the columns in blocks of BN; products run over the features in blocks of BK. All
is float32: products on tensor cores take three passes (tf32x3), whose error is float32's. Rounding probabilities to
bfloat16 would save two of them, and cost the gradient of rows that are almost right, a difference of near numbers.
Offsets are 64 bits wide: rows times width passes 2^31 at large batches.

The same source runs in Triton's interpreter. Importing this module needs `triton`; `cclm.ops.contrastive` asks for it
on CUDA only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from cclm.ops.contrastive import LARGEST_WIDTH


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
        higher = tl.maximum(highest, tl.max(s, 1))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(s - higher[:, None]), 1)
        highest = higher
    tl.store(out_ptr + row, highest + tl.log(total), row < num_rows)


@triton.jit
def gradient_kernel(
    a_ptr, b_ptr, scale_ptr, row_log_ptr, column_log_ptr, out_ptr, num_rows, num_columns, row_weight, column_weight,
    D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out_i = Σ_j (w_row exp(s_ij - row_log_i) + w_column exp(s_ij - column_log_j)) b_j; WIDTH: D, a power of two."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    scale = tl.load(scale_ptr)
    row_log = tl.load(row_log_ptr + row, row < num_rows, 0.0)
    d = tl.arange(0, WIDTH)
    into = tl.zeros((BM, WIDTH), tl.float32)
    for start in range(0, num_columns, BN):
        column = start + tl.arange(0, BN)
        is_column = column < num_columns
        s = _similarities(a_ptr, b_ptr, row, column, num_rows, num_columns, scale, D, BM, BN, BK)
        column_log = tl.load(column_log_ptr + column, is_column, 0.0)
        weight = row_weight * tl.exp(s - row_log[:, None]) + column_weight * tl.exp(s - column_log[None])
        b = tl.load(b_ptr + column[:, None].to(tl.int64) * D + d[None], is_column[:, None] & (d < D)[None], 0.0)
        into = tl.dot(weight, b, into, input_precision="tf32x3")
    tl.store(out_ptr + row[:, None].to(tl.int64) * D + d[None], into, (row < num_rows)[:, None] & (d < D)[None])


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Sizes of a kernel's blocks: the largest that compile for sm_80 and sm_90 without spills at `LARGEST_WIDTH`."""

    rows: int
    columns: int
    features: int
    num_warps: int
    num_stages: int


LOG_SUM_TILE = Tile(rows=64, columns=64, features=32, num_warps=4, num_stages=2)
GRADIENT_TILE = Tile(rows=32, columns=32, features=32, num_warps=8, num_stages=1)


def fits(features: Tensor) -> bool:
    """Return whether the kernels take such features."""
    return features.dtype == torch.float32 and features.shape[0] > 0 and features.shape[1] <= LARGEST_WIDTH


def log_sums(rows_NE: Tensor, others_ME: Tensor, scale: Tensor, tile: Tile = LOG_SUM_TILE) -> Tensor:
    """Return the log-sum-exp of scale · (row · other) over all others, for each row."""
    found = rows_NE.new_empty(rows_NE.shape[0])
    log_sum_kernel[(triton.cdiv(rows_NE.shape[0], tile.rows),)](
        rows_NE.contiguous(), others_ME.contiguous(), scale, found, rows_NE.shape[0], others_ME.shape[0],
        D=rows_NE.shape[1], BM=tile.rows, BN=tile.columns, BK=tile.features,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return found


def own_gradient(
    rows_NE: Tensor,
    others_ME: Tensor,
    row_log_N: Tensor,
    other_log_M: Tensor,
    weights: tuple[float, float],
    scale: Tensor,
    tile: Tile = GRADIENT_TILE,
) -> Tensor:
    """Return Σ_j (w_row exp(s_ij - row_log_i) + w_other exp(s_ij - other_log_j)) b_j of each row."""
    width, found = rows_NE.shape[1], torch.empty_like(rows_NE, memory_format=torch.contiguous_format)
    gradient_kernel[(triton.cdiv(rows_NE.shape[0], tile.rows),)](
        rows_NE.contiguous(), others_ME.contiguous(), scale, row_log_N, other_log_M, found,
        rows_NE.shape[0], others_ME.shape[0], *weights,
        D=width, WIDTH=max(16, triton.next_power_of_2(width)), BM=tile.rows, BN=tile.columns, BK=tile.features,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return found
