"""How the ranks of a run ended, as whoever watched them wrote it down: `RUN/status/exit_KIND_N.json`.

A rank's own last word is in `rank_N.json` (`cclm/run/status.py`); this record also knows the true exit code, and of
ranks that could say nothing any more.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclm.run.causes import GOOD_ENDS, Cause, cause_of_code, consequence
from cclm.run.status import STATUS_FOLDER

VIOLENT_CODES = frozenset(128 + number for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS))
SAME_MOMENT_S = 3.0
"""The partners of a killed rank fail in the same moment, of a lost connection; Slurm itself kills later than that."""


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
    """A sentence, for people."""

    def __str__(self) -> str:
        how = f"killed by signal {self.code - 128}" if self.code > 128 else f"exit code {self.code}"
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
