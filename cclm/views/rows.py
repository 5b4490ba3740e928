"""Rows for the fusion encoder: how they are chosen, and how wrong partners are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cclm.data.batch import ViewBatch
from cclm.objectives.matching import draw_negatives

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


def draw_matching(
    first_BE: Float[Tensor, "b e"],
    second_BE: Float[Tensor, "b e"],
    identity_B: Int[Tensor, " b"],
    batch: ViewBatch,
    temperature: Float[Tensor, " 1"],
    hardness: float,
) -> tuple[Int[Tensor, " f3"], Int[Tensor, " f3"]]:
    """Draw, for each of the batch's F matching rows, a wrong second and a wrong first side inside its negative group.

    Groups are blocks of G consecutive samples, so the draw does not depend on the ranks.

    Returns:
        Rows into B of second sides, which ask, and of first sides, their memories: F right pairs, F with a wrong
        memory, F with a wrong query.
    """
    row_F, size = batch.matching_row_F, batch.noise_second_FG.shape[1]
    start_F = row_F - row_F % size
    candidate_FG = start_F[:, None] + torch.arange(size, device=row_F.device)
    same_FG: Bool[Tensor, "f g"] = identity_B[row_F][:, None] == identity_B[candidate_FG]

    def wrong(own_BE: Tensor, other_BE: Tensor, noise_FG: Tensor) -> Tensor:
        similarity_FG = torch.einsum("fe,fge->fg", own_BE[row_F], other_BE[candidate_FG]) / temperature
        return start_F + draw_negatives(similarity_FG, same_FG, noise_FG, hardness, row_F % size)

    with torch.no_grad():
        other_second_F = wrong(first_BE, second_BE, batch.noise_second_FG)
        other_first_F = wrong(second_BE, first_BE, batch.noise_first_FG)
    return torch.cat([row_F, row_F, other_second_F]), torch.cat([row_F, other_first_F, row_F])
