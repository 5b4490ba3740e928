"""Read a checkpoint back: into any number of ranks, or as plain weights in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from cclm.checkpoint.ranks import on_every_rank
from cclm.engine.protocol import Engine
from cclm.engine.stored_weights import stored_weights
from cclm.run.checkpoints import check_hashes, check_sizes, read_marker


def load_checkpoint(engine: Engine, checkpoint: Path) -> dict[str, Any]:
    """Restore parameters and moments bit by bit; return `{"step": …, "state": …}` as it was saved. A collective.

    The bytes are checked against the marker's hashes first (each rank checks a share). Raises CheckpointError on
    every rank for a damaged checkpoint.
    """
    on_every_rank(engine, lambda: _check(checkpoint, engine.rank, engine.world_size), "find its checkpoint intact")
    return engine.load(checkpoint)


def load_full_state(checkpoint: Path) -> dict[str, Tensor]:
    """Consolidated fp32 weights (and buffers) by name, on the CPU, from a checkpoint of any engine.

    One process, any world size. Names are those of the training module's `state_dict`; tensors with several names are
    read once. Every byte is verified first.
    """
    verify(checkpoint)
    found: dict[str, Tensor] = {}
    known: dict[tuple[int, ...], Tensor] = {}
    for name, stored in stored_weights(checkpoint).items():
        place = (*(part.data_ptr() for part in stored.parts), *stored.shape)
        if place not in known:
            known[place] = stored.whole()
        found[name] = known[place]
    return found


def verify(checkpoint: Path) -> None:
    """Raise `CheckpointError` if a checkpoint is not complete, or if one byte is another than was written."""
    marker = read_marker(checkpoint)
    check_sizes(checkpoint, marker)
    check_hashes(checkpoint, marker, marker.files)


def _check(checkpoint: Path, rank: int, world_size: int) -> None:
    marker = read_marker(checkpoint)
    check_sizes(checkpoint, marker)
    check_hashes(checkpoint, marker, sorted(marker.files)[rank::world_size])
