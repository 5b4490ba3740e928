"""Rows for the fusion encoder: a text that asks, and a memory that answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

States = tuple[Tensor, Tensor]
"""(states, mask) of texts or images."""


@dataclass(frozen=True, kw_only=True)
class FusionRows:
    """Rows for the fusion encoder: a text that asks, and a memory that answers (None: it asks itself only)."""

    query: States
    """(F, L, D), (F, L)."""
    memory: States | None = None
    """(F, N, D), (F, N)."""

    @property
    def count(self) -> int:
        """F."""
        return self.query[0].shape[0]


def stop_gradient(values: Tensor) -> Tensor:
    """The same values with a gradient of zero. Not `detach`: under ZeRO-3 a module whose inputs need no gradient has
    its parameters released before its own backward (DeepSpeed 0.19: "size of tensor a (0) must match")."""
    return values * 0.0 + values.detach()


def select(states: States, row_F: Int[Tensor, " f"]) -> States:
    """Pick rows of states and mask."""
    return states[0][row_F], states[1][row_F]


def memories_of(parts: Sequence[FusionRows]) -> tuple[list[States], Tensor] | None:
    """Memories of all parts, and which rows have one; None if no row has.

    A row without memory gets one token of zeros, which the fusion encoder does not look at.
    """
    if all(part.memory is None for part in parts):
        return None
    memories, has_memory = [], []
    for part in parts:
        states_FLD, mask_FL = part.query
        has_memory.append(torch.full((part.count,), part.memory is not None, device=states_FLD.device))
        memories.append(part.memory or (torch.zeros_like(states_FLD[:, :1]), torch.ones_like(mask_FL[:, :1])))
    return memories, torch.cat(has_memory)
