"""Rows for the fusion encoder: how they are chosen, and how wrong partners are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cclm.objectives.matching import draw_negatives

States = tuple[Tensor, Tensor]
"""(states, mask) of texts or images."""


@dataclass(frozen=True, kw_only=True)
class FusionRows:
    """Rows for the fusion encoder: a text that asks, and a memory that answers (None: it asks itself only)."""

    query_FLD: Float[Tensor, "f l d"]
    query_mask_FL: Bool[Tensor, "f l"]
    memory_FND: Float[Tensor, "f n d"] | None
    memory_mask_FN: Bool[Tensor, "f n"] | None

    @property
    def count(self) -> int:
        """F."""
        return self.query_FLD.shape[0]


def stop_gradient(values: Tensor) -> Tensor:
    """The same values with a gradient of zero. Not `detach`: under ZeRO-3 a module whose inputs need no gradient has
    its parameters released before its own backward (DeepSpeed 0.19: "size of tensor a (0) must match")."""
    return values * 0.0 + values.detach()


def select(
    queries: States, query_row_F: Int[Tensor, " f"], memories: States, memory_row_F: Int[Tensor, " f"]
) -> FusionRows:
    """Pick rows of (states, mask) for both sides."""
    return FusionRows(
        query_FLD=queries[0][query_row_F],
        query_mask_FL=queries[1][query_row_F],
        memory_FND=memories[0][memory_row_F],
        memory_mask_FN=memories[1][memory_row_F],
    )


def memories_of(parts: Sequence[FusionRows]) -> tuple[list[States], Tensor] | None:
    """Memories of all parts, and which rows have one; None if no row has.

    A row without memory gets one token of zeros, which the fusion encoder does not look at.
    """
    if all(part.memory_FND is None for part in parts):
        return None
    memories, has_memory = [], []
    for part in parts:
        query_FLD = part.query_FLD
        has = part.memory_FND is not None
        has_memory.append(torch.full((part.count,), has, device=query_FLD.device))
        if part.memory_FND is not None and part.memory_mask_FN is not None:
            memories.append((part.memory_FND, part.memory_mask_FN))
        else:
            zeros_F1D = torch.zeros_like(query_FLD[:, :1])
            memories.append((zeros_F1D, torch.ones_like(part.query_mask_FL[:, :1])))
    return memories, torch.cat(has_memory)


def negatives(
    first_BE: Float[Tensor, "b e"],
    second_BE: Float[Tensor, "b e"],
    identity_B: Int[Tensor, " b"],
    row_F: Int[Tensor, " f"],
    noise: tuple[Float[Tensor, "f g"], Float[Tensor, "f g"]],
    temperature: Float[Tensor, " 1"],
    hardness: float,
) -> tuple[Int[Tensor, " f"], Int[Tensor, " f"]]:
    """Draw, for each row of `row_F`, a wrong second side and a wrong first side inside its negative group.

    Groups are blocks of G consecutive samples, so the draw does not depend on the ranks. `noise` is the Gumbel noise
    for second sides and for first sides.

    Returns:
        Rows into B: the drawn second sides, the drawn first sides.
    """
    noise_second_FG, noise_first_FG = noise
    size = noise_second_FG.shape[1]
    start_F = row_F - row_F % size
    candidate_FG = start_F[:, None] + torch.arange(size, device=row_F.device)
    same_FG: Bool[Tensor, "f g"] = identity_B[row_F][:, None] == identity_B[candidate_FG]
    with torch.no_grad():
        second_FG = torch.einsum("fe,fge->fg", first_BE[row_F], second_BE[candidate_FG]) / temperature
        first_FG = torch.einsum("fe,fge->fg", second_BE[row_F], first_BE[candidate_FG]) / temperature
        own_F = row_F % size
        other_second_F = start_F + draw_negatives(second_FG, same_FG, noise_second_FG, hardness, own_F)
        other_first_F = start_F + draw_negatives(first_FG, same_FG, noise_first_FG, hardness, own_F)
    return other_second_F, other_first_F
