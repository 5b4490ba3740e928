"""Shares of a state, as any number of ranks would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from cclm.engine.fragments import Fragment, ShareFacts, share_file, share_path


def pieces(name: str, value: Tensor, world_size: int, rank: int) -> list[Fragment]:
    """This rank's piece of one tensor, as ZeRO-3 cuts it; none for a rank behind its end."""
    size = -(-value.numel() // world_size)
    piece = value.flatten()[rank * size : (rank + 1) * size].clone()
    return [Fragment(name=name, shape=tuple(value.shape), start=rank * size, values=piece)] if piece.numel() else []


def write_state(
    checkpoint: Path,
    kinds: dict[str, dict[str, Tensor]],
    world_size: int = 1,
    buffers: dict[str, Tensor] | None = None,
    **facts: Any,
) -> Path:
    """Write the tensors of each kind, cut over so many ranks; return the checkpoint."""
    for rank in range(world_size):
        fragments = {
            kind: [one for name, value in tensors.items() for one in pieces(name, value, world_size, rank)]
            for kind, tensors in kinds.items()
        }
        path, told = share_path(checkpoint, rank), ShareFacts(world_size=world_size, **facts)
        share_file(told, fragments, (buffers or {}) if rank == 0 else {}).write(path)
    return checkpoint
