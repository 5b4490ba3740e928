"""What happened to a run under Slurm: lines of JSON in `RUN/slurm/history.jsonl`, only ever added to. No torch.

    {"event": "submitted", "job": "17", …}                         by submit, and by a job that submits itself again
    {"event": "begin", "attempt": 0, "job": "17", "nodes": …, "step": 0}
    {"event": "end", "attempt": 0, "exit_status": "stopped", "step": 40, "cause": …, "reason": …}
                                                                   none if the attempt was cut off
    {"event": "stop", "job": "17", …}                              a person wants no further attempt

An attempt is one start of the batch script; a requeued job has several (SLURM_RESTART_COUNT counts those of one job).
"""

from __future__ import annotations

import itertools
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

HISTORY = Path("slurm") / "history.jsonl"
STOPPED, BAD_NODES = "stopped", "bad nodes"
"""Exit statuses of attempts that are no failed tries."""
OLD_NAMES = {"life": "attempt", "outcome": "exit_status", "why": "reason"}
OLD_EVENTS = {"rest": "stop"}
"""Words of older versions, whose run folders can still be read."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line."""

    event: str
    """"submitted", "begin", "end" or "stop"."""
    job: str
    """Slurm's job id; a task of an array is ARRAY_TASK."""
    attempt: int = -1
    """Counted from 0 over all jobs of the run; −1: none."""
    step: int = -1
    """Newest complete checkpoint at that moment; 0: none."""
    nodes: str = ""
    """Node list of the attempt, in Slurm's short form."""
    exit_status: str = ""
    """Of an end: "done", "stopped" (asked to, and saved), "failed" or "bad nodes"."""
    cause: str = ""
    """Of an end: why, as `cclm.run.causes` has it."""
    reason: str = ""
    by_user: bool = False
    """Of a submission: a person decided to try (again), so earlier failures do not count."""
    time: float = field(default_factory=lambda: round(time.time(), 3))


def add_event(run_folder: Path, event: Event) -> None:
    """Append a line; on a new line even if the last one was cut off."""
    path = run_folder / HISTORY
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        is_cut_off = file.read(1) not in (b"", b"\n")
        file.write(("\n" * is_cut_off + json.dumps(asdict(event)) + "\n").encode())


def read_history(run_folder: Path) -> list[Event]:
    """Return all lines, oldest first; one that was cut off by a full disk or a kill is left out."""
    path = run_folder / HISTORY
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return [event for line in lines if (event := _parse(line)) is not None]


def _parse(line: str) -> Event | None:
    try:
        values = {OLD_NAMES.get(name, name): value for name, value in json.loads(line).items()}
        known = {name: value for name, value in values.items() if name in Event.__dataclass_fields__}
        return Event(**{**known, "event": OLD_EVENTS.get(values["event"], values["event"])})
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def last_job(history: list[Event]) -> str | None:
    """Return the job of the run, or its last one."""
    jobs = [event.job for event in history if event.event == "submitted"]
    return jobs[-1] if jobs else None


def jobs_of(history: list[Event]) -> list[str]:
    """Return all jobs of the run, oldest first: those submitted by us, and those by hand that have begun. The job of a
    sweep's point is one task of an array, ARRAY_TASK."""
    return list(dict.fromkeys(event.job for event in history))


def is_stopped_by_user(history: list[Event], job: str) -> bool:
    """Return whether a person wanted no further attempt of this job, or of the one that it follows. It holds until a
    person submits again, also by hand: then the job is one that the history has not seen before."""
    requests = [index for index, event in enumerate(history) if event.event == "stop"]
    if not requests or any(event.by_user for event in history[requests[-1] :]):
        return False
    return job in {event.job for event in history if event.event in ("submitted", "stop")}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of the batch script."""

    number: int
    job: str
    nodes: str
    first_step: int
    """Newest complete checkpoint when it began."""
    exit_status: str
    """Of `Event.exit_status`; "" while it runs, or if it was cut off."""
    cause: str
    reason: str
    began: float
    ended: float | None = None
    """None while it runs, or if it was cut off."""


def attempts_since_submission(history: list[Event]) -> list[Attempt]:
    """Return the attempts since a person last submitted the run, oldest first: they share one budget of tries."""
    submissions = [index for index, event in enumerate(history) if event.event == "submitted" and event.by_user]
    return all_attempts(history[submissions[-1] :] if submissions else history)


def all_attempts(history: list[Event]) -> list[Attempt]:
    """Return every attempt of the run, oldest first."""
    ends = {event.attempt: event for event in history if event.event == "end"}
    return [
        Attempt(
            number=event.attempt,
            job=event.job,
            nodes=event.nodes,
            first_step=event.step,
            exit_status=end.exit_status if (end := ends.get(event.attempt)) else "",
            cause=end.cause if end else "",
            reason=end.reason if end else "",
            began=event.time,
            ended=end.time if end else None,
        )
        for event in history
        if event.event == "begin"
    ]


def next_attempt(history: list[Event]) -> int:
    """Return the number of the attempt that begins now."""
    return 1 + max((event.attempt for event in history), default=-1)


def tries_at(attempts: list[Attempt], step: int) -> int:
    """Return how many of the last attempts began at this step and got no further, without having been asked to stop."""
    last = itertools.takewhile(lambda attempt: attempt.first_step == step, reversed(attempts))
    return sum(attempt.exit_status not in (STOPPED, BAD_NODES) for attempt in last)
