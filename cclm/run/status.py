"""What each rank is doing, why it ended, and the marker that says a run is done.

    RUN/status/rank_N.json         what a rank last said about itself
    RUN/status/exit_KIND_N.json    how it ended, as whoever watched it wrote it down, with the true exit code
    RUN/done.json                  written last

Small JSON files that other programs (`launch`, a shell, a colleague) may read at any moment.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cclm.errors import CclmError
from cclm.files.atomic import replace_text
from cclm.run.causes import GOOD_ENDS, Cause, cause_of_code, consequence

STATUS_FOLDER = "status"
DONE_NAME = "done.json"
IDENTITY_NAME = "identity.json"
FULL_BYTES = 2**20
"""A disk with less room than this is full."""
MOST_REASON = 500
"""Characters of a reason; the whole of it is in the rank's log."""
VIOLENT_CODES = frozenset(128 + number for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS))
SAME_MOMENT_S = 3.0
"""The partners of a killed rank fail in the same moment, of a lost connection; Slurm itself kills later than that."""


@dataclass(frozen=True, kw_only=True)
class StatusRecord:
    """What a rank last said about itself."""

    rank: int
    step: int
    """The step it is in, counted from 0."""
    phase: str
    """One word: "starting", "training", "saving", "done", ..."""
    time: float
    host: str
    pid: int
    cause: str = ""
    """Of `cclm.run.causes`: why it ended; "" while it runs, or if it could not say."""
    reason: str = ""


class RankStatus:
    """Writes `folder/status/rank_N.json`, each time as a whole."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path, self.rank = folder / STATUS_FOLDER / f"rank_{rank}.json", rank

    def write(self, step: int, phase: str, *, cause: Cause | None = None, reason: str = "") -> None:
        """Say what this rank does now, or with a `cause` why it ends."""
        record = StatusRecord(
            rank=self.rank,
            step=step,
            phase=phase,
            time=round(time.time(), 3),
            host=socket.gethostname(),
            pid=os.getpid(),
            cause="" if cause is None else cause.value,
            reason=reason,
        )
        replace_text(self.path, json.dumps(asdict(record)) + "\n")


def note_end(folder: Path, rank: int, cause: Cause, reason: str = "") -> None:
    """Say why this rank ends, as its last word. Not in a folder in which another start has spoken (that may go on), nor
    on a full disk, which does not keep a rank from ending: then the exit code alone says it."""
    status = RankStatus(folder, rank)
    before = read_status(status.path)
    if before is not None and (before.pid, before.host) != (os.getpid(), socket.gethostname()):
        return
    try:
        step = 0 if before is None else before.step
        status.write(step, cause.value, cause=cause, reason=" ".join(reason.split())[:MOST_REASON])
    except OSError:
        return


def cause_of_end(folder: Path, rank: int, code: int) -> tuple[Cause, str]:
    """Return why a rank ended, and its own sentence ("" if it left none), for whoever has seen it end. What it said
    itself comes first, then its exit code; one that died of what nobody foresaw while the disk was full died of
    that."""
    said = read_status(folder / STATUS_FOLDER / f"rank_{rank}.json")
    if said is not None and said.cause in set(Cause):
        return Cause(said.cause), said.reason
    cause = cause_of_code(code)
    if cause in (Cause.EXIT, Cause.SIGNAL, Cause.TRANSIENT) and shutil.disk_usage(folder).free < FULL_BYTES:
        return Cause.DISK_FULL, f"the disk of {folder} is full"
    return cause, ""


def read_status(path: Path) -> StatusRecord | None:
    """Read what a rank last said; None if there is nothing that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return StatusRecord(**{name: values[name] for name in values.keys() & StatusRecord.__annotations__.keys()})
    except (OSError, TypeError, ValueError, AttributeError):
        return None


@dataclass(frozen=True, kw_only=True)
class DoneRecord:
    """The end of a run: steps and seconds of training, all attempts together."""

    step: int
    seconds: float
    time: float


class DoneMarker:
    """`folder/done.json`: written last, after everything else of a run; no marker means not done."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / DONE_NAME

    def write(self, step: int, seconds: float) -> None:
        """Declare the run done: it reached `step` steps in `seconds` seconds, the sum over its attempts."""
        record = DoneRecord(step=step, seconds=round(seconds, 3), time=round(time.time(), 3))
        replace_text(self.path, json.dumps(asdict(record)) + "\n", durable=True)

    def read(self) -> DoneRecord | None:
        """Return the marker, or None if the run is not done. Raise CclmError if a file of this name is no marker."""
        if not self.path.exists():
            return None
        try:
            return DoneRecord(**json.loads(self.path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise CclmError(
                where=str(self.path),
                expected="the marker of a run that is done",
                got=" ".join(str(error).split()),
                do="Remove the file; the same command then goes on from the newest checkpoint.",
            ) from error


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """How a rank (or the task of an array) ended; written by who started it."""

    rank: int
    host: str
    attempt: int
    code: int
    """Exit code; 128 + N for signal N."""
    time: float
    cause: Cause
    reason: str

    def __str__(self) -> str:
        is_signal = 128 < self.code < 128 + signal.NSIG
        how = f"killed by signal {self.code - 128}" if is_signal else f"exit code {self.code}"
        how = how if self.cause in (Cause.EXIT, Cause.SIGNAL, Cause.ENDED, Cause.DONE) else self.cause.value
        return f"rank {self.rank} on {self.host}: {how.replace('_', ' ')}" + (f": {self.reason}" if self.reason else "")


def rank_to_blame(ends: Sequence[RankEnd]) -> RankEnd | None:
    """Return the rank that ended first, of those that did not end because of another."""
    failed = [end for end in ends if end.cause not in GOOD_ENDS]
    first = min((end.time for end in failed), default=0.0)

    def order(end: RankEnd) -> tuple[int, bool, float]:
        was_killed = end.code in VIOLENT_CODES and end.time - first < SAME_MOMENT_S
        return consequence(end.cause), not was_killed, end.time

    return min(failed, key=order, default=None)


def read_ends(run_folder: Path, attempt: int) -> list[RankEnd]:
    """Return the ranks of an attempt that told how they ended, the earliest first."""
    ends = (end for end in _records(run_folder, "rank") if end.attempt == attempt)
    return sorted(ends, key=lambda end: end.time)


def task_codes(run_folder: Path) -> dict[int, int]:
    """Return the exit codes of an array's tasks, of those that ever ended."""
    return {end.rank: end.code for end in _records(run_folder, "task")}


def _records(run_folder: Path, kind: str) -> Iterator[RankEnd]:
    for path in (run_folder / STATUS_FOLDER).glob(f"exit_{kind}_*.json"):
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "cause" not in values:  # an older version's
            words = [text for text in (values.pop("why"), values.pop("last_words")) if text]
            values |= {
                "attempt": values.pop("life"),
                "cause": cause_of_code(values["code"]),
                "reason": ": ".join(words),
            }
        yield RankEnd(**{**values, "cause": Cause(values["cause"])})


def run_identity(folder: Path) -> str:
    """Return the identity of the run in a folder: a random text, made once, that copies and services know it by."""
    path = folder / IDENTITY_NAME
    if path.exists():
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    identity = secrets.token_hex(8)
    replace_text(path, json.dumps({"id": identity}) + "\n")
    return identity
