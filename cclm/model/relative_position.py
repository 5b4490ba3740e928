"""Learned biases of attention scores by relative position, as Swin and BEiT have them.

A table has one row for each offset (Δrow, Δcolumn) that two cells of a square grid can have; which row a pair of cells
takes is an index, computed here and cached (it is no buffer: a checkpoint should not carry what the sizes say).
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

try:  # noqa: SIM105  # annotations only: an exported checkpoint loads without it, and HF skips imports in a try
    from jaxtyping import Float, Int
except ImportError:
    pass


class RelativePositionBias(nn.Module):
    """The table; `forward` spreads it over all pairs of tokens."""

    def __init__(self, num_rows: int, num_heads: int) -> None:
        super().__init__()
        self.bias_table = nn.Parameter(torch.zeros(num_rows, num_heads))

    def forward(self, index_LL: Int[Tensor, "l l"]) -> Float[Tensor, "heads l l"]:
        """What to add to the scores of each head."""
        return functional.embedding(index_LL, self.bias_table).permute(2, 0, 1)

    def start_parameters(self, init: ModuleType) -> None:
        """Published start: a small normal."""
        init.normal_(self.bias_table, std=0.02)


def num_offsets(side: int) -> int:
    """How many offsets two cells of a side × side grid can have."""
    return (2 * side - 1) ** 2


@cache
@torch.inference_mode(False)
def grid_index(side: int, device: torch.device) -> Int[Tensor, "cells cells"]:
    """Table row of each pair of cells of a side × side grid in reading order."""
    line = torch.arange(side, device=device)
    row_P, column_P = line.repeat_interleave(side), line.repeat(side)
    down_PP = row_P[:, None] - row_P[None] + side - 1
    right_PP = column_P[:, None] - column_P[None] + side - 1
    return down_PP * (2 * side - 1) + right_PP


@cache
@torch.inference_mode(False)
def grid_index_with_class(side: int, device: torch.device) -> Int[Tensor, "tokens tokens"]:
    """The same with a class token in front, whose pairs take the last three rows.

    Those are, in order: class token looks at a cell, a cell looks at the class token, class token looks at itself.
    """
    index_LL = functional.pad(grid_index(side, device), (1, 0, 1, 0))
    first = num_offsets(side)
    index_LL[0, :] = first
    index_LL[:, 0] = first + 1
    index_LL[0, 0] = first + 2
    return index_LL
