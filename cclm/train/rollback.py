"""Back to a healthy checkpoint, and on without the batches that led away from it.

    checkpoints      80            100
                      ▲             │
    steps      …  80 … 95 … 104 105 106 …  112    bad: 105, 107, 108, …, 112, more than may be
                        └──────── left out ────┘  from health.suspect_steps before the first bad one
                      └ goes on from here: the newest checkpoint before the suspected steps

A step that is left out has no batch and no update: number, schedule and checkpoints go on. Without the suspected steps
a rollback would change nothing: all is deterministic, and the bad steps themselves had no update. What is left out is
in `rollbacks.jsonl`, which an attempt that resumes reads: all attempts and replays leave out the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cclm.checkpoint.collective import newest_sound
from cclm.distributed.agreement import made_by_first, on_every_rank
from cclm.errors import Cause, CclmError
from cclm.files.lines import StepLines
from cclm.run.checkpoints import ROLLBACKS_FILE, Rollback, complete_checkpoints, read_marker, remove_newer
from cclm.train.health import Health

if TYPE_CHECKING:
    from cclm.train.loop import Run


class LeftOut:
    """The steps that a run leaves out; alike on every rank."""

    def __init__(self, rollbacks: Iterable[Rollback] = ()) -> None:
        self.rollbacks = list(rollbacks)

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and any(one.first <= step < one.stop for one in self.rollbacks)

    def __bool__(self) -> bool:
        return bool(self.rollbacks)

    def __str__(self) -> str:
        return ", ".join(f"{one.first} to {one.stop - 1}" for one in self.rollbacks) or "none"


def plan_rollback(run_folder: Path, health: Health, earlier: int, error: CclmError) -> Rollback:
    """Return where to go back to, and what to leave out, or raise `error`: there is no way back, or there were enough.

    A healthy checkpoint has `suspect_steps` good steps behind it; without one it is the newest before the bad steps.
    """
    if earlier >= health.config.max_rollbacks or not health.bad_steps:
        if not earlier:
            raise error
        got = f"{error.got}; after {earlier} rollbacks (health.max_rollbacks)"
        raise CclmError(where=error.where, expected=error.expected, got=got, do=error.do, cause=error.cause) from error
    first_bad, stop = health.bad_steps[0], health.bad_steps[-1] + 1
    suspected = max(0, first_bad - health.config.suspect_steps)
    steps = [read_marker(path).step for path in complete_checkpoints(run_folder)]
    before = [step for step in steps if step <= suspected] or [step for step in steps if step <= first_bad]
    if not before:
        raise error
    return Rollback(step=stop, to=max(before), first=max(*before, suspected), stop=stop)


def roll_back(run: Run, error: CclmError) -> int:
    """Load the checkpoint that `plan_rollback` finds; return the step that the run goes on with. A collective.

    Checkpoints of later steps are removed first, so whoever resumes after a kill goes on from there, too.

    Raises:
        CclmError: `error`, on every rank alike, if it may not or cannot, or if all steps up to the last would be left
            out; CheckpointError, if a file cannot be read.
    """
    if error.cause is not Cause.DIVERGED:
        raise error
    run.checkpointer.wait()
    ranks, recorder = run.engine.collectives, run.recorder
    is_first = ranks.rank == 0
    found = made_by_first(ranks, lambda: plan_rollback(run.folder, recorder.health, len(run.left_out.rollbacks), error))
    on_every_rank(ranks, lambda: remove_newer(run.folder, found.to) if is_first else [], "remove checkpoints")
    if found.stop >= run.num_steps:  # nothing would show that it learns again: who starts it next decides
        do = recorder.health.advice()
        raise CclmError(where=error.where, expected=error.expected, got=error.got, do=do, cause=error.cause)
    checkpoint = newest_sound(ranks, run.folder, sys.stderr.write)
    if checkpoint is None:
        raise error
    found = replace(found, to=made_by_first(ranks, lambda: read_marker(checkpoint).step))
    on_every_rank(ranks, lambda: _note(run.folder, found, error) if is_first else None, "write down a rollback")
    run.left_out.rollbacks.append(found)
    loaded = run.engine.load(checkpoint)
    recorder.restore(found.to, loaded["state"])
    run.evaluation.rewind(found.to)
    recorder.phase(found.to, "training")
    return found.to


def _note(run_folder: Path, rollback: Rollback, error: CclmError) -> None:
    values = asdict(rollback)
    lines = StepLines(run_folder / ROLLBACKS_FILE)
    lines.append(values.pop("step"), {**values, "time": round(time.time(), 3), "why": str(error)})
    lines.sync()
    sys.stderr.write(
        f"{error.where}: expected {error.expected}, got {error.got}: goes back to step {rollback.to}, "
        f"and leaves out steps {rollback.first} to {rollback.stop - 1} ({ROLLBACKS_FILE})\n"
    )
