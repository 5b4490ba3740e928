"""A request to stop: how it reaches a run, and the note that it was obeyed. Standard library only.

    SIGUSR1, SIGTERM to a rank ─┐
    text in RUN/stop ───────────┴─► asked ─► (the ranks agree, save) ─► RUN/stopped.json, exit code 75

The file works where no signal does (another machine, a launcher that dies of the signal), the signal where a network
file system shows the file late. Whoever starts a run removes an old request first (`clear`).
"""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from cclm.files.atomic import replace_text

STOP_NAME = "stop"
STOPPED_NAME = "stopped.json"
STOPPED_CODE = 75
"""Exit code of a rank that saved because it was asked to: EX_TEMPFAIL of sysexits.h, "try again later"."""
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
TRACEBACK_SIGNAL = signal.SIGUSR2


@dataclass(frozen=True, kw_only=True)
class StoppedRecord:
    """A run that was asked to stop, saved, and ended."""

    step: int
    """Number of steps done, and saved."""
    reason: str
    time: float
    """Seconds since 1970."""


class StopRequest:
    """What this process knows about a request to stop."""

    def __init__(self) -> None:
        self.signal_reason = ""

    @classmethod
    @contextmanager
    def listening(cls) -> Iterator[StopRequest]:
        """Catch the signals for the length of the `with` block; SIGUSR2 makes Python print where it is, and go on."""
        request = cls()
        before = {number: signal.signal(number, request._receive) for number in STOP_SIGNALS}
        faulthandler.register(TRACEBACK_SIGNAL, file=sys.__stderr__ or 2, all_threads=True)
        try:
            yield request
        finally:
            faulthandler.unregister(TRACEBACK_SIGNAL)
            for number, handler in before.items():
                signal.signal(number, handler)

    def reason(self, folder: Path | None) -> str:
        """Why this process should stop, or "". `folder`: the run folder, on the rank that looks at its file."""
        return (read_request(folder) if folder is not None else "") or self.signal_reason

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal_reason = signal.Signals(number).name


def read_request(folder: Path) -> str:
    """Read the text of `RUN/stop`; "" if there is none."""
    try:
        return (folder / STOP_NAME).read_text(encoding="utf-8").strip()
    except OSError:  # not there; or a network file system that does not answer: then the next step asks again
        return ""


def ask_to_stop(folder: Path, reason: str) -> None:
    """Ask the run to save and end after its present step."""
    replace_text(folder / STOP_NAME, f"{reason}\n")


def note_stopped(folder: Path, step: int, reason: str) -> None:
    """Note that the request was obeyed, and take it away; one rank does this, after the checkpoint."""
    record = StoppedRecord(step=step, reason=reason, time=round(time.time(), 3))
    replace_text(folder / STOPPED_NAME, json.dumps(asdict(record)) + "\n", durable=True)
    (folder / STOP_NAME).unlink(missing_ok=True)


def read_stopped(folder: Path) -> StoppedRecord | None:
    """Return the note of the run's last life, or None if that was not stopped by request."""
    path = folder / STOPPED_NAME
    return StoppedRecord(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def clear(folder: Path) -> None:
    """Remove requests and notes of an earlier life; for whoever starts the run."""
    (folder / STOP_NAME).unlink(missing_ok=True)
    (folder / STOPPED_NAME).unlink(missing_ok=True)
