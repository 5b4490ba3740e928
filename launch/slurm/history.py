"""What happened to a run under Slurm: lines of JSON in `RUN/slurm/history.jsonl`, only ever added to. No torch.

    {"event": "submitted", "job": "17", …}                         by submit, and by a job that submits itself again
    {"event": "begin", "life": 0, "job": "17", "nodes": …, "step": 0}
    {"event": "end", "life": 0, "outcome": "stopped", "step": 40, "why": …}     none if the life was cut off
    {"event": "rest", "job": "17", …}                                           a person wants no further life

A life is one start of the batch script; a requeued job has several.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HISTORY = Path("slurm") / "history.jsonl"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line."""

    event: str
    """"submitted", "begin", "end" or "rest"."""
    job: str
    """Slurm's job id; an element of an array is ARRAY_ELEMENT."""
    life: int = -1
    """Number of the life, counted from 0 over all jobs of the run; −1: none."""
    step: int = -1
    """Newest complete checkpoint at that moment; 0: none."""
    nodes: str = ""
    """Node list of the life, in Slurm's short form."""
    outcome: str = ""
    """Of an end: "done", "stopped" (asked to, and saved), "failed" or "bad nodes"."""
    why: str = ""
    """A sentence."""
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
    """Return all lines, oldest first; a last line that was cut off by a full disk or a kill is left out."""
    path = run_folder / HISTORY
    if not path.exists():
        return []
    return [Event(**values) for values in _parsed(path.read_text(encoding="utf-8"))]


def _parsed(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def last_job(history: list[Event]) -> str | None:
    """The job that carries the run now, or carried it last."""
    jobs = [event.job for event in history if event.event == "submitted"]
    return jobs[-1] if jobs else None


def jobs_of(history: list[Event]) -> list[str]:
    """All jobs of the run, oldest first: those submitted by us, and those by hand that have begun. The job of a
    sweep's point is an element, ARRAY_ELEMENT."""
    return list(dict.fromkeys(event.job for event in history))


def is_to_rest(history: list[Event], job: str) -> bool:
    """Whether a person wanted no further life of this job, or of the one that it follows.

    It holds until a person submits again, also by hand: then the job is one that the history has not seen before.
    """
    wishes = [index for index, event in enumerate(history) if event.event == "rest"]
    if not wishes or any(event.by_user for event in history[wishes[-1] :]):
        return False
    return job in {event.job for event in history if event.event in ("submitted", "rest")}


@dataclass(frozen=True, kw_only=True)
class Life:
    """One start of the batch script."""

    number: int
    job: str
    nodes: str
    first_step: int
    """Newest complete checkpoint when it began."""
    outcome: str
    """Of `Event.outcome`; "" while it runs, or if it was cut off."""
    why: str
    began: float
    ended: float | None = None
    """None while it runs, or if it was cut off."""


def lives_of(history: list[Event]) -> list[Life]:
    """Return the lives since a person last submitted the run, oldest first: those that are judged together."""
    submissions = [index for index, event in enumerate(history) if event.event == "submitted" and event.by_user]
    return all_lives(history[submissions[-1] :] if submissions else history)


def all_lives(history: list[Event]) -> list[Life]:
    """Return every life of the run, oldest first."""
    ends = {event.life: event for event in history if event.event == "end"}
    return [
        Life(
            number=event.life,
            job=event.job,
            nodes=event.nodes,
            first_step=event.step,
            outcome=ends[event.life].outcome if event.life in ends else "",
            why=ends[event.life].why if event.life in ends else "",
            began=event.time,
            ended=ends[event.life].time if event.life in ends else None,
        )
        for event in history
        if event.event == "begin"
    ]


def next_life(history: list[Event]) -> int:
    """Number of the life that begins now."""
    return 1 + max((event.life for event in history), default=-1)
