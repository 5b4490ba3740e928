"""What the folder of a run says by itself, read once: history, plan, progress, ranks, and who holds its lock.

RUN/status/rank_N.json, exit_rank_N.json ──> RankNow, one per rank ──> a line for each group that says the same
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

from cclm.errors import CclmError
from cclm.files.lock import holder_of
from cclm.files.text import duration, spans
from cclm.run.causes import GOOD_ENDS
from cclm.run.progress import Progress, read_progress
from cclm.run.status import STATUS_FOLDER, read_ends, read_status, task_codes
from cclm.run.stop import StoppedRecord, read_stopped
from launch.plan.slurm_job import PLAN_NAME, SLURM_FOLDER, SlurmPlan, find_plan
from launch.slurm.history import HISTORY, Event, all_attempts, read_history

AT_WORK = ("starting", "training", "evaluating", "saving", "copying")
"""Phases of a rank that has not ended."""


@dataclass(frozen=True, kw_only=True)
class RankNow:
    """One rank."""

    rank: int
    host: str
    phase: str
    step: int
    silent_s: float
    """Seconds since it last said something."""
    end: str
    """How it ended in this attempt, in words; "" if it has not, or ended well."""


def read_ranks(run_folder: Path, *, now: float, attempt: int = 0, since: float = 0.0) -> list[RankNow]:
    """Read the ranks of an attempt, by number; what they said before `since` (seconds since 1970) is another's."""
    ends = {end.rank: str(end) for end in read_ends(run_folder, attempt) if end.cause not in GOOD_ENDS}
    records = (read_status(path) for path in (run_folder / STATUS_FOLDER).glob("rank_*.json"))
    said = [record for record in records if record is not None and record.time >= since]
    for record in said:
        if record.cause and record.cause not in GOOD_ENDS:
            ends.setdefault(record.rank, f"{record.cause.replace('_', ' ')}: {record.reason}")
    return [
        RankNow(
            rank=record.rank,
            host=record.host,
            phase=record.phase,
            step=record.step,
            silent_s=round(now - record.time, 1),
            end=ends.get(record.rank, ""),
        )
        for record in sorted(said, key=lambda record: record.rank)
    ]


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
    is_gone: bool
    """Rank 0 ran on this machine, and its process is no more."""
    codes: Mapping[int, int]
    """Exit codes of an array's tasks that ever ended."""
    ranks: Sequence[RankNow]
    now: float


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
    stopped, first = read_stopped(path), read_status(path / STATUS_FOLDER / "rank_0.json")
    if stopped is not None and progress.phase in AT_WORK and (progress.silent_s or 0.0) < now - stopped.time:
        stopped = None  # of an earlier start: whoever started the last one has left it there
    return RunFolder(
        path=path,
        plan=plan,
        history=history,
        progress=progress,
        stopped=stopped,
        holder=holder_of(path),
        is_gone=first is not None and first.host == gethostname() and not Path(f"/proc/{first.pid}").exists(),
        codes=task_codes(path) if plan is not None and plan.request.array else {},
        ranks=read_ranks(path, now=now, attempt=newest.number if newest else 0, since=newest.began if newest else 0.0),
        now=now,
    )


def in_groups(ranks: Sequence[RankNow], *, silent_after_s: float) -> list[str]:
    """Return one line for all ranks that say the same; ranks that are silent or ended badly have their own."""
    groups: dict[tuple[str, int, str, str], list[RankNow]] = {}
    for rank in ranks:
        silence = f", silent for {duration(rank.silent_s)}" if rank.silent_s > silent_after_s and not rank.end else ""
        groups.setdefault((rank.phase, rank.step, silence, rank.end), []).append(rank)
    lines = []
    for (phase, step, silence, end), members in groups.items():
        hosts = sorted({rank.host for rank in members})
        where = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
        how = end or f"{phase} at step {step}{silence}"
        lines.append(f"{spans(rank.rank for rank in members)} on {where}: {how}")
    return lines
