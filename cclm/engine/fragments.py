"""What one rank holds of a parameter, whatever the ZeRO stage, and how it is filled from the files of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cclm.engine.stored_weights import StoredTensor
from cclm.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """What one rank holds of a parameter's fp32 master values."""

    name: str
    """Of the parameter in the training module."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """First element in the flattened parameter."""
    values: Tensor
    """Flat, fp32; shares memory with the optimizer's values."""


@torch.no_grad()
def fill(fragments: Iterable[Fragment], stored: Mapping[str, StoredTensor], where: str) -> None:
    """Copy into each fragment its stretch of the stored tensor of its name; `where`: what holds them, for the error.

    Raises:
        CheckpointError: there is no such parameter, or one of another shape.
    """
    for fragment in fragments:
        found = stored.get(fragment.name)
        if found is None or found.shape != fragment.shape:
            raise CheckpointError(
                expected=f"{fragment.name} of shape {fragment.shape}",
                got="no such parameter" if found is None else f"shape {found.shape}",
                do="Resume with the configuration that wrote the checkpoint.",
                where=where,
            )
        place = 0
        for piece in found.stretch(fragment.start, fragment.values.numel()):
            fragment.values[place : place + piece.numel()].copy_(piece)
            place += piece.numel()
