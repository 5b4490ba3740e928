"""Read a checkpoint back: into any number of ranks, or as plain weights in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from cclm.engine.protocol import Engine
from cclm.engine.stored_weights import stored_weights
from cclm.run.checkpoints import verify


def load_checkpoint(engine: Engine[Any], checkpoint: Path) -> dict[str, Any]:
    """Restore parameters and moments bit by bit; return `{"step": …, "state": …}` as it was saved. A collective.

    The bytes are not looked at again: take a checkpoint that `cclm.checkpoint.choose.newest_sound` has found sound.

    Raises:
        CheckpointError: on every rank, if it does not fit the engine's module or cannot be read.
    """
    return engine.load(checkpoint)


def load_full_state(checkpoint: Path) -> dict[str, Tensor]:
    """Return consolidated fp32 weights (and buffers) by name, on the CPU, from a checkpoint of any engine.

    One process, any world size. Names are those of the training module's `state_dict`; tensors with several names are
    read once. Every byte is verified first.
    """
    verify(checkpoint)
    stored = stored_weights(checkpoint)
    distinct = {id(tensor): tensor for tensor in stored.values()}
    read = {key: tensor.whole() for key, tensor in distinct.items()}
    return {name: read[id(tensor)] for name, tensor in stored.items()}
