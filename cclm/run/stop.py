"""A request to stop: how it reaches a run, and the note that it was obeyed. Standard library only.

    SIGUSR1, TERM, INT, HUP to a rank ─┐
    RUN/stop ──────────────────────────┴─► asked ─► (the ranks agree, save) ─► RUN/stopped.json, exit code 75

Signals are the business of `cclm/run/signals.py`. The file works where no signal does (another machine, a launcher that
dies of the signal), the signal where a network file system shows the file late. It is a small JSON (`RequestRecord`);
`touch RUN/stop`, or any text in it, is a person's request, too. Whoever starts a run removes what an earlier start left
(`clear`).
"""

from __future__ import annotations

import getpass
import json
import math
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from cclm.files.atomic import replace_text
from cclm.files.reading import read_json
from cclm.run.causes import EXIT_CODES, Cause
from cclm.run.checkpoints import SAVE_NAME, newest_complete, read_marker
from cclm.run.signals import BEGAN
from cclm.run.status import STATUS_FOLDER

STOP_NAME = "stop"
STOPPED_NAME = "stopped.json"
STOPPED_CODE = EXIT_CODES[Cause.STOPPED]
"""Exit code of a rank that saved because it was asked to: EX_TEMPFAIL of sysexits.h, "try again later"."""
CLEARED_VARIABLE = "CCLM_CLEARED"
"""Run folder in which the launcher of this process has removed what an earlier start left."""
NEVER = 0.0
"""Time of a request that asks nothing."""
BY_HAND = "asked through RUN/stop"


class StopKind(str, Enum):
    """Who wants a run to stop, which decides whether it goes on by itself."""

    USER = "user"
    """A person: it goes on when a person starts it again."""
    SCHEDULER = "scheduler"
    """The job's time limit or preemption: the next attempt goes on."""
    SIGNAL = "signal"
    """Somebody who sent a signal: the next attempt goes on, if a scheduler starts one."""
    NOTHING = "nothing"
    """Nobody: the file is there so that no network file system remembers for a minute that it is not."""


@dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """What `RUN/stop` says."""

    kind: StopKind
    reason: str
    who: str = ""
    """USER@HOST; "" if it was written by hand."""
    time: float = 0.0
    """Seconds since 1970; 0 if it was written by hand."""


@dataclass(frozen=True, kw_only=True)
class StoppedRecord:
    """A run that was asked to stop, saved, and ended."""

    step: int
    reason: str
    time: float
    kind: StopKind = StopKind.SIGNAL


def read_request(folder: Path) -> RequestRecord | None:
    """Read `RUN/stop`; None if nobody asks. What a person wrote there by hand asks, even nothing at all (`touch`)."""
    path = folder / STOP_NAME
    try:
        text, changed = path.read_text(encoding="utf-8", errors="replace").strip(), path.stat().st_mtime
    except OSError:  # not there; or a network file system that does not answer: then the next step asks again
        return None
    try:
        record = RequestRecord(**json.loads(text))
        record = replace(record, kind=StopKind(record.kind))
    except (TypeError, ValueError):
        return RequestRecord(kind=StopKind.USER, reason=text or BY_HAND)
    if record.kind is StopKind.NOTHING:
        return RequestRecord(kind=StopKind.USER, reason=BY_HAND) if changed != NEVER else None
    return record


def ask_to_stop(folder: Path, reason: str, kind: StopKind) -> None:
    """Ask the run to save and end after its present step."""
    record = RequestRecord(kind=kind, reason=reason, who=_who(), time=round(time.time(), 3))
    replace_text(folder / STOP_NAME, json.dumps(asdict(record)) + "\n")


def note_stopped(folder: Path, step: int, reason: str) -> None:
    """Note that the request was obeyed, and take it away; one rank does this, after the checkpoint."""
    asked = read_request(folder)
    kind = StopKind.SIGNAL if asked is None else asked.kind
    record = StoppedRecord(step=step, reason=reason, time=round(time.time(), 3), kind=kind)
    replace_text(folder / STOPPED_NAME, json.dumps(asdict(record)) + "\n", durable=True)
    (folder / STOP_NAME).unlink(missing_ok=True)


def note_left(folder: Path, reason: str) -> None:
    """Note that the request was obeyed before the first step, when there was nothing to save."""
    checkpoint = newest_complete(folder)
    note_stopped(folder, 0 if checkpoint is None else read_marker(checkpoint).step, reason)


def read_stopped(folder: Path) -> StoppedRecord | None:
    """Return the note of the run's last start, or None if that was not stopped by request."""
    values = read_json(folder / STOPPED_NAME, None)
    if values is None:
        return None
    kind, reason = StopKind(values.get("kind", StopKind.SIGNAL)), str(values.get("reason", BY_HAND))
    return StoppedRecord(step=values.get("step", 0), reason=reason, time=values.get("time", 0.0), kind=kind)


def clear(folder: Path, *, before: float = math.inf) -> None:
    """Remove what an earlier start left: the request, the note that it was obeyed, and what its ranks said last. For
    whoever starts a run and knows that no other start is alive. `before`: leave what is newer (seconds since 1970)."""
    for path in (
        folder / STOP_NAME,
        folder / STOPPED_NAME,
        folder / SAVE_NAME,
        *(folder / STATUS_FOLDER).glob("rank_*.json"),
    ):
        try:
            if path.stat().st_mtime < before:
                path.unlink()
        except FileNotFoundError:
            continue


def clear_for_this_start(folder: Path) -> None:
    """Do `clear` on the first rank, once it holds the run's lock, unless a launcher of ours has done it. What was asked
    since this process began is meant for it, and stays."""
    cleared = os.environ.get(CLEARED_VARIABLE)
    if cleared is None or Path(cleared).resolve() != folder.resolve():
        clear(folder, before=BEGAN)


def ask_nothing(folder: Path) -> None:
    """Put a request there that asks nothing: who looks for a file finds a change of it at once, a new one late. Its
    time is the beginning of all times, so that a `touch` shows."""
    record = RequestRecord(kind=StopKind.NOTHING, reason="")
    replace_text(folder / STOP_NAME, json.dumps(asdict(record)) + "\n")
    os.utime(folder / STOP_NAME, (NEVER, NEVER))


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
