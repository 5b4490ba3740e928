"""What each rank is doing, and the marker that says a run is done.

Both are small JSON files that other programs (`launch`, a shell, a colleague) may read at any moment.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cclm.errors import CclmError
from cclm.files.atomic import replace_text

STATUS_FOLDER = "status"
DONE_NAME = "done.json"


@dataclass(frozen=True, kw_only=True)
class StatusRecord:
    """What a rank last said about itself."""

    rank: int
    step: int
    """The step it is in, counted from 0."""
    phase: str
    """One word: "starting", "training", "saving", "done", ..."""
    time: float
    """Seconds since 1970 when it said so."""
    host: str
    pid: int


class RankStatus:
    """Writes `folder/status/rank_N.json`, each time as a whole."""

    def __init__(self, folder: Path, rank: int, *, clock: Callable[[], float] = time.time) -> None:
        self.path = folder / STATUS_FOLDER / f"rank_{rank}.json"
        self.rank = rank
        self._clock = clock

    def write(self, step: int, phase: str) -> None:
        """Say what this rank does now."""
        record = StatusRecord(
            rank=self.rank,
            step=step,
            phase=phase,
            time=round(self._clock(), 3),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        replace_text(self.path, json.dumps(asdict(record)) + "\n")


def forget_other_ranks(folder: Path, world_size: int) -> None:
    """Remove what ranks said that an earlier life of the run had and this has not: nobody is silent there."""
    own = {f"rank_{rank}.json" for rank in range(world_size)}
    for path in (folder / STATUS_FOLDER).glob("rank_*.json"):
        if path.name not in own:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class DoneRecord:
    """The end of a run."""

    step: int
    """Number of steps done, all lives of the run together."""
    seconds: float
    """Seconds of training, all lives of the run together."""
    time: float
    """Seconds since 1970 when it ended."""


class DoneMarker:
    """`folder/done.json`: written last, after everything else of a run; no marker means not done."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = folder / DONE_NAME
        self._clock = clock

    def write(self, step: int, seconds: float) -> None:
        """Declare the run done: it reached `step` steps in `seconds` seconds, the sum over its lives."""
        record = DoneRecord(step=step, seconds=round(seconds, 3), time=round(self._clock(), 3))
        replace_text(self.path, json.dumps(asdict(record)) + "\n", durable=True)

    def read(self) -> DoneRecord | None:
        """Return the marker, or None if the run is not done.

        Raises:
            CclmError: there is a file of this name that is no marker.
        """
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
