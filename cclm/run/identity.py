"""Which checkpoint is it? What results and exports remember, so that nobody takes them for another's. No torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cclm.run.checkpoints import MARKER, newest_complete, read_marker


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """One complete checkpoint of a run."""

    step: int
    """Updates done."""
    identity: str
    """SHA-256 of its marker, which holds the hash of every file: no two checkpoints share it."""


def identify(checkpoint: Path) -> CheckpointFacts:
    """Return the step and the identity of a complete checkpoint.

    Raises:
        CheckpointError: it has no readable marker.
    """
    marker = read_marker(checkpoint)
    return CheckpointFacts(step=marker.step, identity=hashlib.sha256((checkpoint / MARKER).read_bytes()).hexdigest())


def identify_newest(run_folder: Path) -> CheckpointFacts | None:
    """Return the facts of the newest complete checkpoint of a run, or None if there is none."""
    found = newest_complete(run_folder)
    return None if found is None else identify(found)
