"""Tables of positions for another window or resolution, relative ones interpolated as the published fine-tuning does.

A relative table is a square grid of offsets. Those of the source are spread at 0, ±1, ±(1 + q), ±(1 + q + q²), …
over the target's grid, fine in the middle and coarse outside, with q chosen so that the last one reaches the border; a
bicubic spline through them is then read at the target's offsets 0, ±1, ±2, … It is the spline without smoothing
("not-a-knot").
"""

from __future__ import annotations

from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

LOWEST_RATIO, HIGHEST_RATIO, TOLERANCE = 1.01, 1.5, 1e-6
"""Where the published bisection looks for q, and when it stops."""


def resize_bias_table(table_RN: Tensor, num_rows: int, num_extra: int = 0) -> Tensor:
    """Interpolate a table of R rows (offsets of a square window, row by row) per head to `num_rows` rows.

    `num_extra`: of both, rows at the end that are no offsets and are kept (BEiT's three for the class token).

    Raises:
        ValueError: numbers of rows that are no squares of an odd number.
    """
    rows = table_RN.shape[0]
    if rows == num_rows:
        return table_RN
    source, target = _side(rows - num_extra), _side(num_rows - num_extra)
    grid = table_RN[: rows - num_extra].reshape(source, source, -1).double().numpy()
    resized = spread(spread(grid, target), target, axis=1).reshape(target * target, -1)
    return torch.cat([torch.from_numpy(resized).to(table_RN.dtype), table_RN[rows - num_extra :]])


def resize_positions(table_PD: Tensor, num_patches: int) -> Tensor:
    """Interpolate the positions of a square grid of patches, row by row, to another grid: bicubic, as ViTs do."""
    source, target = isqrt(table_PD.shape[0]), isqrt(num_patches)
    grid = table_PD.float().view(1, source, source, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.contiguous().to(table_PD.dtype)


def spread(values: NDArray[np.float64], target: int, axis: int = 0) -> NDArray[np.float64]:
    """Read the spline through values along one axis, of an odd number of offsets, at `target` offsets."""
    from scipy.interpolate import make_interp_spline  # takes a while to import

    source = values.shape[axis]
    positions = source_positions(source, target)
    wanted = (np.arange(target, dtype=np.float64) - target // 2).clip(positions[0], positions[-1])
    found: NDArray[np.float64] = make_interp_spline(positions, values, min(3, source - 1), axis=axis)(wanted)
    return found


def source_positions(source: int, target: int) -> NDArray[np.float64]:
    """Where the source offsets stand on the target's axis: geometric distances from the middle."""
    low, high = LOWEST_RATIO, HIGHEST_RATIO
    while high - low > TOLERANCE:
        ratio = (low + high) / 2
        reach = (1 - ratio ** (source // 2)) / (1 - ratio)
        low, high = (low, ratio) if reach > target // 2 else (ratio, high)
    distances = np.cumsum(ratio ** np.arange(source // 2))
    return np.concatenate([-distances[::-1], [0.0], distances])


def _side(num_offsets: int) -> int:
    side = isqrt(max(0, num_offsets))
    if side * side != num_offsets or side % 2 == 0:
        raise ValueError(
            f"relative position table: expected the square of an odd number of rows, got {num_offsets}. "
            "Is it a table of a square window, and are its extra rows counted?"
        )
    return side
