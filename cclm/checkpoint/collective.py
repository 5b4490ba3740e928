"""Checkpoints that all ranks write and choose together: complete or absent.

    all ranks   engine.save into .step_N.partial; reference outputs beside it
    all ranks   sync, measure and hash a share of the files each
    rank 0      marker → rename to step_N → sync the parent folder → prune

A run goes on from the newest one whose every byte is as it was written, the same on every rank:

    step_300   a bit flipped       ──► step_300.damaged
    step_200   a file missing      ──► step_200.damaged
    step_100   sound               ──► taken

The run folder must lie on storage that all ranks share. The same while the ranks train: `cclm.checkpoint.background`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cclm.distributed.agreement import on_every_rank
from cclm.distributed.collectives import Collectives
from cclm.engine.protocol import Engine
from cclm.errors import Cause, CheckpointError
from cclm.files.atomic import sync
from cclm.run import checkpoints
from cclm.run.checkpoints import FileRecord, Marker, damage_of, set_aside, visible_checkpoints

LOOK_AGAIN_S = 3.0
"""Before a checkpoint with flaws is looked at once more."""


def save_checkpoint(
    engine: Engine[Any],
    run_folder: Path,
    step: int,
    state: Mapping[str, Any],
    keep: int,
    keep_every: int | None = None,
    reference_outputs: Callable[[Engine[Any], Path], None] | None = None,
) -> Path:
    """Write the state after `step` updates, then remove what need not stay (`checkpoints.prune`); return the
    checkpoint's folder. If a complete one of this step exists, write nothing. A collective. `state`: whatever the loop
    needs besides `step`, of numbers, strings, lists and dicts; `reference_outputs`, called on every rank, puts what the
    engine computes on a fixed probe into the folder. Raise CheckpointError on every rank if one fails; its cause is
    that rank's. The older checkpoint stays the newest."""
    ranks, is_first = engine.collectives, engine.rank == 0
    visible, hidden = checkpoints.step_folder(run_folder, step), checkpoints.partial_folder(run_folder, step)
    if on_every_rank(ranks, lambda: is_first and is_there(run_folder, step), "prepare a checkpoint")[0]:
        return visible
    share = {"step": step, "state": dict(state)}

    def write() -> None:
        on_every_rank(ranks, lambda: engine.save(hidden, share), f"write its share of {hidden}")

    try:
        write()
    except CheckpointError as error:
        if not make_room(ranks, run_folder, error, keep, keep_every):
            raise
        write()
    if reference_outputs is not None:
        reference_outputs(engine, hidden)
    records = on_every_rank(ranks, lambda: _seal_share(hidden, ranks), "sync its share")
    marker = Marker(step=step, world_size=ranks.world_size, files=joined(records))
    finish = partial(checkpoints.finish, hidden, visible, marker, keep, keep_every)
    on_every_rank(ranks, lambda: finish() if is_first else None, "finish")
    return visible


def is_there(run_folder: Path, step: int) -> bool:
    """Make a folder to write in, once leftovers are gone; or return that the checkpoint is there already."""
    checkpoints.remove_leftovers(run_folder)
    if checkpoints.step_folder(run_folder, step) in checkpoints.complete_checkpoints(run_folder):
        return True
    checkpoints.partial_folder(run_folder, step).mkdir(parents=True)
    return False


def make_room(ranks: Collectives, run_folder: Path, error: CheckpointError, keep: int, keep_every: int | None) -> bool:
    """Remove the checkpoints that the one being written will replace, if it found the disk full; the newest stays. A
    collective. Returns whether there were any: then it is worth trying again."""
    if error.cause is not Cause.DISK_FULL or keep == 1:
        return False
    prune = partial(checkpoints.prune, run_folder, keep - 1, keep_every)
    return any(on_every_rank(ranks, lambda: prune() if ranks.rank == 0 else [], "make room"))


def joined(records: Iterable[Mapping[str, FileRecord]]) -> dict[str, FileRecord]:
    """Return the records of all ranks' files as one table."""
    return {name: record for share in records for name, record in share.items()}


def _seal_share(hidden: Path, ranks: Collectives) -> dict[str, FileRecord]:
    """Force every world_size-th file to disk and describe it."""
    records = {}
    for name in checkpoints.list_files(hidden)[ranks.rank :: ranks.world_size]:
        sync(hidden / name)
        records[name] = checkpoints.record_file(hidden / name)
    return records


def newest_sound(ranks: Collectives, run_folder: Path, tell: Callable[[str], object]) -> Path | None:
    """Return the newest sound checkpoint of a run, or None if there is no checkpoint at all. A collective: each rank
    hashes a share of the files. Damaged ones that are newer are renamed, never removed; `tell` gets a line for each, on
    rank 0. Raise CheckpointError on every rank if all are damaged (nothing is renamed then), another version of this
    library wrote one, or the storage does not answer."""
    is_first = ranks.rank == 0
    found = on_every_rank(ranks, lambda: visible_checkpoints(run_folder) if is_first else [], "list checkpoints")
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(found[0]):
        flaws = flaws_of(ranks, checkpoint)
        if flaws:  # a network file system may show another machine's files late, and a network may garble them
            time.sleep(LOOK_AGAIN_S)
            flaws = flaws_of(ranks, checkpoint)
        if not flaws:
            on_every_rank(ranks, lambda: _set_aside(damaged, tell) if is_first else None, "set checkpoints aside")
            if damaged and is_first:
                tell(f"going on from {checkpoint.name}\n")
            return checkpoint
        damaged[checkpoint] = "; ".join(flaws)
    if damaged:
        raise CheckpointError(
            where=str(run_folder / checkpoints.FOLDER),
            expected="a checkpoint whose files are as they were written",
            got="; ".join(f"{path.name}: {flaws}" for path, flaws in damaged.items()),
            do="Put the files back from a copy, or rename these folders to start from the beginning; check the disk.",
        )
    return None


def flaws_of(ranks: Collectives, checkpoint: Path) -> list[str]:
    """What the ranks find wrong, each in its share of the files."""
    shares = on_every_rank(ranks, lambda: damage_of(checkpoint, ranks.rank, ranks.world_size), "read a checkpoint")
    return list(dict.fromkeys(flaw for share in shares for flaw in share))


def _set_aside(damaged: dict[Path, str], tell: Callable[[str], object]) -> None:
    for checkpoint, flaws in damaged.items():
        tell(f"damaged checkpoint {checkpoint} set aside as {set_aside(checkpoint).name}: {flaws}\n")
