"""Read a checkpoint back: into the same number of ranks, or as plain weights in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cclm.checkpoint.layout import check_hashes, check_sizes, read_marker
from cclm.checkpoint.ranks import on_every_rank
from cclm.engine.plain import STATE_FILE
from cclm.engine.protocol import Engine
from cclm.errors import CheckpointError


def load_checkpoint(engine: Engine, checkpoint: Path) -> dict[str, Any]:
    """Restore parameters and moments bit by bit; return `{"step": …, "state": …}` as it was saved. A collective.

    The bytes are checked against the marker's hashes first (each rank checks a share). Raises CheckpointError on
    every rank for a damaged checkpoint or another number of ranks.
    """
    on_every_rank(engine, lambda: _check(checkpoint, engine.rank, engine.world_size), "find its checkpoint intact")
    return engine.load(checkpoint)


def load_full_state(checkpoint: Path) -> dict[str, Tensor]:
    """Consolidated fp32 weights (and buffers) by name, on the CPU, from a checkpoint of any engine.

    One process, any world size. Names are those of the training module's `state_dict`. Every byte is verified first.
    """
    marker = read_marker(checkpoint)
    check_sizes(checkpoint, marker)
    check_hashes(checkpoint, marker, marker.files)
    if (checkpoint / STATE_FILE).exists():
        state: dict[str, Tensor] = torch.load(checkpoint / STATE_FILE, map_location="cpu", weights_only=True)["module"]
        return state
    from cclm.engine.deepspeed_engine import consolidated_state

    return consolidated_state(checkpoint)


def _check(checkpoint: Path, rank: int, world_size: int) -> None:
    marker = read_marker(checkpoint)
    if marker.world_size != world_size:
        raise CheckpointError(
            expected=f"{marker.world_size} ranks (which wrote this checkpoint)",
            got=f"{world_size}",
            do=f"Resume with {marker.world_size} ranks; resuming with another number of ranks is not there yet.",
            where=str(checkpoint),
        )
    check_sizes(checkpoint, marker)
    check_hashes(checkpoint, marker, sorted(marker.files)[rank::world_size])
