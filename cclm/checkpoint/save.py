"""Write a checkpoint that is complete or does not exist.

    all ranks   engine.save into .step_N.partial; reference outputs beside it
    all ranks   sync, measure and hash a share of the files each
    rank 0      marker → rename to step_N → sync the parent folder → prune

The run folder must lie on storage that all ranks share.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cclm.distributed.together import on_every_rank
from cclm.engine.protocol import Engine
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


def save_checkpoint(
    engine: Engine[Any],
    run_folder: Path,
    step: int,
    state: Mapping[str, Any],
    keep: int,
    reference_outputs: Callable[[Engine[Any], Path], None] | None = None,
) -> Path:
    """Write the state after `step` updates; keep the `keep` newest checkpoints. A collective.

    Args:
        engine: whose parameters and moments are saved.
        run_folder: checkpoints go to its subfolder `checkpoints`.
        step: number of updates done.
        state: whatever the loop needs besides `step`; numbers, strings, lists and dicts only.
        keep: at least 1.
        reference_outputs: puts what the engine computes on a fixed probe into the folder
            (`cclm.hub.reference_outputs`); called on every rank.

    Returns the checkpoint's folder; if a complete one of this step exists, writes nothing.

    Raises:
        CheckpointError: on every rank, if one fails to make room, to write or sync its share, or to finish; its cause
            is that rank's. The older checkpoint stays the newest.
    """
    visible, partial = step_folder(run_folder, step), partial_folder(run_folder, step)
    exists = on_every_rank(engine, lambda: _prepare(engine.rank, run_folder, visible, partial), "prepare a checkpoint")
    if exists[0]:
        return visible
    share = {"step": step, "state": dict(state)}
    on_every_rank(engine, lambda: engine.save(partial, share), f"write its share of {partial}")
    if reference_outputs is not None:
        reference_outputs(engine, partial)
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
