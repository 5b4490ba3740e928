"""Rows for the fusion encoder: a text that asks, and a memory that answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """(M, N, D), (M, N)."""
    memory_row_F: Int[Tensor, " f *n"] | None = None
    """Which of the memories each text reads, or which n of them."""

    def in_passes(self, num_memories: int) -> FusionRows:
        """Return rows for a fusion encoder that reads so many memories at once: all of a row's n, or one after another,
        each in a pass of its own (F rows with the first ones, F with the second, …)."""
        if self.memory_row_F is None or self.memory_row_F.ndim == 1 or num_memories > 1:
            return self
        number = self.memory_row_F.shape[1]
        states, mask = self.query
        query = states.repeat(number, 1, 1), mask.repeat(number, 1)
        return replace(self, query=query, memory_row_F=self.memory_row_F.T.reshape(-1))

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


def memories_of(parts: Sequence[FusionRows]) -> tuple[list[States], Tensor, Tensor | None] | None:
    """Return the memories of all parts, each once; which of them each row reads; which rows read any.

    None if no row reads. Rows without a memory name the first one, which the fusion encoder then does not look at; the
    last of the three is None if there are no such rows.
    """
    first_rows, memories, num_memories, rows, reads = (
        dict[int, int](),
        list[States](),
        0,
        list[Tensor](),
        list[Tensor](),
    )
    for part in parts:
        row_F = torch.zeros(part.count, dtype=torch.int64, device=part.query[1].device)
        reads.append(torch.full_like(row_F, part.memory is not None, dtype=torch.bool))
        if part.memory is not None:
            assert part.memory_row_F is not None, "a memory, and which of its rows are read"
            if id(part.memory[0]) not in first_rows:
                first_rows[id(part.memory[0])] = num_memories
                memories.append(part.memory)
                num_memories += part.memory[0].shape[0]
            row_F = part.memory_row_F + first_rows[id(part.memory[0])]
        rows.append(row_F)
    if not memories:
        return None
    is_mixed = any(part.memory is None for part in parts)
    return memories, torch.cat(rows), torch.cat(reads) if is_mixed else None
