"""Choose the checkpoint to go on from: the newest whose every byte is as it was written, the same on every rank.

step_300   a bit flipped       ──► step_300.damaged
step_200   a file missing      ──► step_200.damaged
step_100   sound               ──► taken
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from cclm.distributed.together import Ranks, on_every_rank
from cclm.errors import CheckpointError
from cclm.run.checkpoints import FOLDER, damage_of, set_aside, visible_checkpoints


def newest_sound(ranks: Ranks, run_folder: Path, tell: Callable[[str], object]) -> Path | None:
    """Return the newest sound checkpoint of a run, or None if there is no checkpoint at all. A collective.

    Each rank hashes a share of the files. Damaged ones that are newer are renamed, never removed.

    Args:
        ranks: this process's place.
        run_folder: on storage that all ranks share.
        tell: gets a line for each checkpoint that is set aside, on rank 0.

    Raises:
        CheckpointError: on every rank: there are checkpoints, and all of them are damaged (nothing is renamed then);
            another version of this library wrote one; or the storage does not answer.
    """
    is_first = ranks.rank == 0
    candidates = on_every_rank(ranks, lambda: visible_checkpoints(run_folder) if is_first else [], "list checkpoints")
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(candidates[0]):
        look = partial(damage_of, checkpoint, ranks.rank, ranks.world_size)
        flaws = [flaw for share in on_every_rank(ranks, look, "read a checkpoint") for flaw in share]
        if not flaws:
            on_every_rank(ranks, lambda: _set_aside(damaged, tell) if is_first else None, "set checkpoints aside")
            if damaged and is_first:
                tell(f"going on from {checkpoint.name}\n")
            return checkpoint
        damaged[checkpoint] = "; ".join(dict.fromkeys(flaws))
    if damaged:
        raise CheckpointError(
            where=str(run_folder / FOLDER),
            expected="a checkpoint whose files are as they were written",
            got="; ".join(f"{path.name}: {flaws}" for path, flaws in damaged.items()),
            do="Put the files back from a copy, or rename these folders to start from the beginning; check the disk.",
        )
    return None


def _set_aside(damaged: dict[Path, str], tell: Callable[[str], object]) -> None:
    for checkpoint, flaws in damaged.items():
        tell(f"damaged checkpoint {checkpoint} set aside as {set_aside(checkpoint).name}: {flaws}\n")
