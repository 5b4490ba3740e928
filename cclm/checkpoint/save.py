"""Write a checkpoint that is complete or does not exist.

    all ranks   engine.save into .step_N.partial; the witness beside it
    all ranks   sync, measure and hash a share of the files each
    rank 0      marker → rename to step_N → sync the parent folder → prune

The run folder must lie on storage that all ranks share.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cclm.checkpoint.ranks import on_every_rank
from cclm.engine.protocol import Engine
from cclm.errors import CheckpointError
from cclm.files.atomic import sync
from cclm.run.checkpoints import (
    FileRecord,
    Marker,
    complete_checkpoints,
    list_files,
    partial_folder,
    prune,
    publish,
    record_file,
    remove_leftovers,
    step_folder,
    write_marker,
)

TORCH_WRITE_FAILURES = ("inline_container", "PytorchStreamWriter", "iostream error")
"""How torch's own file writer spells a failed write, as a RuntimeError without an errno."""


def save_checkpoint(
    engine: Engine,
    run_folder: Path,
    step: int,
    state: Mapping[str, Any],
    keep: int,
    witness: Callable[[Engine, Path], None] | None = None,
) -> Path:
    """Write the state after `step` updates; keep the `keep` newest checkpoints. A collective.

    Args:
        engine: whose parameters and moments are saved.
        run_folder: checkpoints go to its subfolder `checkpoints`.
        step: number of updates done.
        state: whatever the loop needs besides `step`; numbers, strings, lists and dicts only.
        keep: at least 1.
        witness: puts what the engine computes on a fixed probe into the folder (`cclm.hub.reference_outputs`);
            called on every rank.

    Returns the checkpoint's folder; if a complete one of this step exists, writes nothing.

    Raises:
        CheckpointError: on every rank, if one fails to make room, to sync its share or to finish.
        CheckpointError: if a file cannot be written (a full disk), on that rank alone and at once: the others may stand
            in a collective of the engine's own and cannot be told. The rank's end ends the job; the older checkpoint
            stays the newest.
    """
    visible, partial = step_folder(run_folder, step), partial_folder(run_folder, step)
    exists = on_every_rank(engine, lambda: _prepare(engine.rank, run_folder, visible, partial), "prepare a checkpoint")
    if exists[0]:
        return visible
    _write(engine, partial, {"step": step, "state": dict(state)})  # raises on one rank alone: see the docstring
    on_every_rank(engine, lambda: None, "write its share")
    if witness is not None:
        witness(engine, partial)
    records = on_every_rank(engine, lambda: _seal_share(partial, engine.rank, engine.world_size), "sync its share")
    marker = Marker(
        step=step,
        world_size=engine.world_size,
        files={name: record for share in records for name, record in share.items()},
    )
    on_every_rank(engine, lambda: _finish(engine.rank, run_folder, partial, visible, marker, keep), "finish")
    return visible


def _prepare(rank: int, run_folder: Path, visible: Path, partial: Path) -> bool:
    """Rank 0 makes room; returns whether the checkpoint is there already."""
    if rank != 0:
        return False
    remove_leftovers(run_folder)
    if visible in complete_checkpoints(run_folder):
        return True
    partial.mkdir(parents=True)
    return False


def _write(engine: Engine, partial: Path, state: dict[str, Any]) -> None:
    """Let the engine write; what the storage refuses becomes a sentence, anything else stays what it is."""
    try:
        engine.save(partial, state)
    except (OSError, RuntimeError) as error:
        if not (isinstance(error, OSError) or any(word in str(error) for word in TORCH_WRITE_FAILURES)):
            raise
        raise CheckpointError(
            expected="room and permission to write this rank's share of a checkpoint",
            got=f"rank {engine.rank}: {error}",
            do="Free space or mend the storage; the same command goes on from the newest complete checkpoint.",
            where=str(partial),
        ) from error


def _seal_share(partial: Path, rank: int, world_size: int) -> dict[str, FileRecord]:
    """Force every world_size-th file to disk and describe it."""
    records = {}
    for name in list_files(partial)[rank::world_size]:
        sync(partial / name)
        records[name] = record_file(partial / name)
    return records


def _finish(rank: int, run_folder: Path, partial: Path, visible: Path, marker: Marker, keep: int) -> None:
    if rank != 0:
        return
    for folder, _, _ in os.walk(partial):
        sync(Path(folder))
    write_marker(partial, marker)
    publish(partial, visible)
    prune(run_folder, keep)
