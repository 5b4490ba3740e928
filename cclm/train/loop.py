"""The training loop, in the order in which things happen, and when it saves.

It knows no precision, no view and no parallelism.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cclm.checkpoint.collective import save_checkpoint
from cclm.data.batch import Batch
from cclm.data.options import Schedule
from cclm.distributed.agreement import agree_on_step
from cclm.engine.protocol import Engine
from cclm.errors import Cause
from cclm.run.ending import MemoryGuard
from cclm.run.signals import StopAsked, StopRequest
from cclm.run.status import DoneMarker
from cclm.run.stop import note_stopped
from cclm.train.recorder import Recorder
from cclm.train.updates import update


@dataclass(kw_only=True)
class Checkpointer:
    """Saves every so many steps, and when it is told to."""

    engine: Engine[Any]
    run_folder: Path
    every_steps: int
    keep: int
    """How many complete checkpoints stay."""
    seconds_before: float
    """That earlier attempts of the run took, up to the checkpoint."""
    reference_outputs: Callable[[Engine[Any], Path], None]
    """Puts what the engine computes on a fixed probe into a checkpoint: exports are compared with it."""
    _began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far."""
        return self.seconds_before + time.monotonic() - self._began

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps."""
        return step % self.every_steps == 0

    def save(self, step: int, recorder: Recorder) -> None:
        """Save the state after `step` steps. A collective.

        Raises:
            CclmError: the run has diverged: what is there stays.
        """
        recorder.health.check_updates(step)
        recorder.phase(step, "saving")
        recorder.sync()
        state = {"seconds": self.seconds, "samples_seen": dict(recorder.samples_seen.totals)}
        save_checkpoint(self.engine, self.run_folder, step, state, self.keep, self.reference_outputs)
        recorder.health.saved()
        recorder.throughput.restart()


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training loop needs, wired by a program's `build`."""

    folder: Path
    engine: Engine[Batch]
    batches: Callable[[int], Iterator[tuple[Batch, Batch]]]
    """From a step on: each batch as it was read, and on the device."""
    schedule: Schedule
    start_step: int
    num_steps: int
    recorder: Recorder
    checkpointer: Checkpointer
    done: DoneMarker
    stop: StopRequest
    memory: MemoryGuard


def train(run: Run) -> bool:
    """Train from `run.start_step` to `run.num_steps`, then write the done marker.

    Returns False if it was asked to stop before: then it has saved, and the same command goes on from there.

    Raises:
        CclmError: the run has diverged, or too many samples were bad; on every rank alike.
        DataError: a whole neighbourhood of samples is broken; on the rank that reads it (the launcher ends the others).
    """
    recorder, checkpointer = run.recorder, run.checkpointer
    batches = run.batches(run.start_step)
    recorder.phase(run.start_step, "training")
    run.stop.begin()
    for step in range(run.start_step, run.num_steps):
        taken = next_batch(run, batches)
        # Before the work, not behind it: a rank that is told while it waits for a batch need not wait any longer.
        if is_asked_before(run, step, taken):
            save_and_stop(run, step)
            return False
        assert taken is not None
        batch, on_device = taken
        assert batch.step == step, f"the loader gave step {batch.step} at step {step}"
        result = update(run.engine, on_device, run.schedule, partial(is_anybody_asked, run))
        if result is None:
            save_and_stop(run, step)
            return False
        recorder.add(batch, result)
        run.memory.passed()

        is_saving = step + 1 == run.num_steps or checkpointer.is_due(step + 1)
        if is_saving or recorder.is_due(step + 1):
            recorder.write(step)
        if is_saving or recorder.health.is_lost:
            checkpointer.save(step + 1, recorder)
    recorder.phase(run.num_steps, "done", Cause.DONE)
    run.done.write(step=run.num_steps, seconds=checkpointer.seconds)
    return True


def next_batch(run: Run, batches: Iterator[tuple[Batch, Batch]]) -> tuple[Batch, Batch] | None:
    """Return the next batch; None if there is a request to stop, or one comes while this rank waits."""
    try:
        with run.recorder.throughput.data_wait(), run.stop.interrupting():
            return next(batches)
    except StopAsked:
        return None


def is_asked_before(run: Run, step: int, taken: tuple[Batch, Batch] | None) -> bool:
    """Return whether a rank is asked to stop before a step. One collective; ConfigError where ranks disagree on it."""
    parts = {} if taken is None else dict(enumerate(taken[1].parts))
    return agree_on_step(run.engine.collectives, step, parts, is_asked=bool(own_reason(run)) or taken is None)


def is_anybody_asked(run: Run) -> bool:
    """Return whether a rank is asked to stop, between micro-batches. A collective."""
    return any(asked for (asked,) in run.engine.collectives.numbers([bool(own_reason(run))]))


def own_reason(run: Run) -> str:
    """Return why this rank is asked to stop, or ""."""
    return run.stop.reason(run.folder if run.engine.rank == 0 else None)


def save_and_stop(run: Run, step: int) -> None:
    """Save after `step` steps, if any was done since the last checkpoint, and note why the run ends. A collective."""
    reason = own_reason(run) or run.stop.reason(run.folder) or "another rank was asked"
    run.recorder.write(step - 1)
    if run.recorder.health.has_changed:
        run.checkpointer.save(step, run.recorder)
    run.recorder.phase(step, "stopped", Cause.STOPPED, reason)
    if run.engine.rank == 0:
        note_stopped(run.folder, step, reason)
