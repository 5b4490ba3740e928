"""Relative position tables for another window or resolution, interpolated as the published fine-tuning does.

A table is a square grid of offsets. Those of the source are spread at 0, ±1, ±(1 + q), ±(1 + q + q²), … over the
target's grid, fine in the middle and coarse outside, with q chosen so that the last one reaches the border; a bicubic
spline through them is then read at the target's offsets 0, ±1, ±2, … It is the interpolating spline without smoothing
("not-a-knot"), what scipy's RectBivariateSpline(kx=3, ky=3, s=0) computes; being separable, it is one small matrix
applied to rows and columns. Written here because scipy would be a dependency for these forty lines.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOWEST_RATIO, HIGHEST_RATIO, TOLERANCE = 1.01, 1.5, 1e-6
"""Where the published bisection looks for q, and when it stops."""
ORDER = 4
"""Of the spline: cubic pieces."""


def resize_bias_table(table_RN: Tensor, num_rows: int, num_extra: int = 0) -> Tensor:
    """Interpolate a table of R rows (offsets of a square window, row by row) per head to `num_rows` rows.

    Args:
        table_RN: float table, one column per head.
        num_rows: rows wanted, `num_extra` included.
        num_extra: rows at the end that are no offsets and are kept (BEiT's three for the class token).

    Raises:
        ValueError: numbers of rows that are no squares of an odd number.
    """
    rows = table_RN.shape[0]
    if rows == num_rows:
        return table_RN
    source, target = _side(rows - num_extra), _side(num_rows - num_extra)
    matrix = resizing_matrix(source, target)
    grid = table_RN[: rows - num_extra].reshape(source, source, -1).double().numpy()
    resized = np.einsum("is,jt,sth->ijh", matrix, matrix, grid).reshape(target * target, -1)
    return torch.cat([torch.from_numpy(resized).to(table_RN.dtype), table_RN[rows - num_extra :]])


def resizing_matrix(source: int, target: int) -> NDArray[np.float64]:
    """Weights (target, source) of the spline along one axis; both are odd numbers of offsets."""
    positions = source_positions(source, target)
    wanted = np.arange(target, dtype=np.float64) - target // 2
    wanted = wanted.clip(positions[0], positions[-1])
    return _basis(positions, wanted) @ np.linalg.inv(_basis(positions, positions))


def source_positions(source: int, target: int) -> NDArray[np.float64]:
    """Where the source offsets stand on the target's axis: geometric distances from the middle."""
    low, high = LOWEST_RATIO, HIGHEST_RATIO
    while high - low > TOLERANCE:
        ratio = (low + high) / 2
        reach = (1 - ratio ** (source // 2)) / (1 - ratio)
        low, high = (low, ratio) if reach > target // 2 else (ratio, high)
    distances = np.cumsum(ratio ** np.arange(source // 2))
    return np.concatenate([-distances[::-1], [0.0], distances])


def _basis(positions: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic B-splines with not-a-knot ends on `positions` at `wanted`: (len(wanted), len(positions)), by de Boor."""
    order = min(ORDER, len(positions))
    inner = positions[order // 2 : len(positions) - order // 2]
    knots = np.concatenate([[positions[0]] * order, inner, [positions[-1]] * order])
    last = len(knots) - order - 1
    piece = np.clip(np.searchsorted(knots, wanted, side="right") - 1, order - 1, last)
    values: NDArray[np.float64] = (np.arange(len(knots) - 1) == piece[:, None]).astype(np.float64)
    for degree in range(1, order):
        count = len(knots) - 1 - degree
        left, right = knots[:count], knots[degree + 1 : degree + 1 + count]
        rise, fall = knots[degree : degree + count] - left, right - knots[1 : 1 + count]
        up = np.divide(wanted[:, None] - left, rise, out=np.zeros((len(wanted), count)), where=rise > 0)
        down = np.divide(right - wanted[:, None], fall, out=np.zeros((len(wanted), count)), where=fall > 0)
        values = up * values[:, :count] + down * values[:, 1 : 1 + count]
    return values


def _side(num_offsets: int) -> int:
    """Offsets per axis of a square table."""
    side = isqrt(max(0, num_offsets))
    if side * side != num_offsets or side % 2 == 0:
        raise ValueError(
            f"relative position table: expected the square of an odd number of rows, got {num_offsets}. "
            "Is it a table of a square window, and are its extra rows counted?"
        )
    return side
