"""What a run has gone back from (`cclm.train.rollback`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cclm.files.lines import StepLines

ROLLBACKS_FILE = "rollbacks.jsonl"
"""In the run folder: a line for each rollback, of all attempts."""


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """One rollback."""

    step: int
    """The first step that was not done any more."""
    to: int
    """Updates of the checkpoint that the run went on from."""
    first: int
    """First step that is left out since then."""
    stop: int
    """The step behind the last of them."""


def read_rollbacks(run_folder: Path) -> list[Rollback]:
    """Return the rollbacks of a run, oldest first."""
    names = Rollback.__annotations__
    lines = StepLines(run_folder / ROLLBACKS_FILE).read()
    return [Rollback(**{name: int(line[name]) for name in names}) for line in lines]
