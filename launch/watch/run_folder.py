"""What the folder of a run says by itself, read once: history, plan, progress, ranks, and who holds its lock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cclm.errors import CclmError
from cclm.files.lock import holder_of
from cclm.run.progress import Progress, read_progress
from cclm.run.rank_ends import task_codes
from cclm.run.stop import StoppedRecord, read_stopped
from launch.plan.slurm_job import PLAN_NAME, SLURM_FOLDER, SlurmPlan, find_plan
from launch.slurm.history import HISTORY, Event, all_attempts, read_history
from launch.watch.ranks import RankNow, read_ranks

AT_WORK = ("starting", "training", "saving")
"""Phases of a rank that has not ended."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What the folder of a run says."""

    path: Path
    plan: SlurmPlan | None
    """Of a run submitted to Slurm."""
    history: list[Event]
    progress: Progress
    stopped: StoppedRecord | None
    holder: str
    """Who trains in it, as far as this machine knows; "" if nobody does."""
    codes: Mapping[int, int]
    """Exit codes of an array's tasks that ever ended."""
    ranks: Sequence[RankNow]
    now: float
    """Seconds since 1970 when it was read."""


def read_folder(path: Path, *, now: float | None = None) -> RunFolder:
    """Read a run folder. Raise CclmError if a file cannot be read without which nothing can be said."""
    now = time.time() if now is None else now
    history, plan = read_history(path), find_plan(path)
    if history and plan is None:
        raise CclmError(
            where=str(path), expected=f"{SLURM_FOLDER}/{PLAN_NAME} beside {HISTORY}", got="none",
            do="Submit the run again: it writes the plan anew.",
        )  # fmt: skip
    newest = attempts[-1] if (attempts := all_attempts(history)) else None
    progress = read_progress(path, now=now)
    stopped = read_stopped(path)
    if stopped is not None and progress.phase in AT_WORK and (progress.silent_s or 0.0) < now - stopped.time:
        stopped = None  # of an earlier start: whoever started the last one has left it there
    return RunFolder(
        path=path,
        plan=plan,
        history=history,
        progress=progress,
        stopped=stopped,
        holder=holder_of(path),
        codes=task_codes(path) if plan is not None and plan.request.array else {},
        ranks=read_ranks(path, now=now, attempt=newest.number if newest else 0, since=newest.began if newest else 0.0),
        now=now,
    )
