"""What the folder of a run says by itself, read once: history, plan, progress, ranks, and who holds its lock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclm.errors import CclmError
from cclm.files.lock import holder_of
from cclm.files.reading import read_json
from cclm.run.stop import StoppedRecord, read_stopped
from launch.plan.slurm_job import PLAN_NAME, SLURM_FOLDER
from launch.slurm.history import HISTORY, Event, all_lives, read_history
from launch.slurm.restart import element_codes
from launch.watch.progress import Progress, read_progress
from launch.watch.ranks import RankNow, read_ranks


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What the folder of a run says."""

    path: Path
    plan: Mapping[str, Any] | None
    """Of a run submitted to Slurm."""
    history: list[Event]
    progress: Progress
    stopped: StoppedRecord | None
    holder: str
    """Who trains in it, as far as this machine knows; "" if nobody does."""
    codes: Mapping[int, int]
    """Exit codes of an array's elements that ever ended."""
    ranks: Sequence[RankNow]
    now: float
    """Seconds since 1970 when it was read."""


def read_folder(path: Path, *, now: float | None = None) -> RunFolder:
    """Read a run folder.

    Raises:
        CclmError: a file of it cannot be read.
    """
    now = time.time() if now is None else now
    history = read_history(path)
    lives = all_lives(history)
    plan = read_json(path / SLURM_FOLDER / PLAN_NAME, None)
    if history and plan is None:
        raise CclmError(
            where=str(path), expected=f"{SLURM_FOLDER}/{PLAN_NAME} beside {HISTORY}", got="none",
            do="Submit the run again: it writes the plan anew.",
        )  # fmt: skip
    return RunFolder(
        path=path,
        plan=plan,
        history=history,
        progress=read_progress(path, now=now),
        stopped=read_stopped(path),
        holder=holder_of(path),
        codes=element_codes(path) if plan is not None and plan["array"] else {},
        ranks=read_ranks(path, now=now, life=lives[-1].number, since=lives[-1].began)
        if lives
        else read_ranks(path, now=now),
        now=now,
    )
