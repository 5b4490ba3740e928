"""The training loop, in the order in which things happen. It knows no precision, no view and no parallelism."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cclm.data.batch import Batch
from cclm.data.options import Schedule
from cclm.distributed.collectives import Collectives
from cclm.engine.protocol import Engine
from cclm.run.status import DoneMarker
from cclm.run.stop import StopRequest, note_stopped
from cclm.train.checkpointer import Checkpointer
from cclm.train.recorder import Recorder
from cclm.train.updates import update


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training loop needs, wired by a program's `build`."""

    folder: Path
    engine: Engine[Batch]
    collectives: Collectives
    batches: Callable[[int], Iterator[tuple[Batch, Batch]]]
    """From a step on: each batch as it was read, and on the device."""
    schedule: Schedule
    start_step: int
    num_steps: int
    recorder: Recorder
    checkpointer: Checkpointer
    done: DoneMarker
    stop: StopRequest


def train(run: Run) -> bool:
    """Train from `run.start_step` to `run.num_steps`, then write the done marker.

    Returns False if it was asked to stop before: then it has saved, and the same command goes on from there.

    Raises:
        CclmError: the loss is not finite, or too many samples were bad; on every rank alike.
        DataError: a whole neighbourhood of samples is broken; on the rank that reads it (the launcher ends the others).
    """
    recorder, checkpointer = run.recorder, run.checkpointer
    batches = run.batches(run.start_step)
    recorder.phase(run.start_step, "training")
    for step in range(run.start_step, run.num_steps):
        with recorder.data_wait():
            batch, on_device = next(batches)
        assert batch.step == step, f"the loader gave step {batch.step} at step {step}"
        result = update(run.engine, on_device, run.schedule)
        recorder.add(batch, result)

        is_last = step + 1 == run.num_steps
        stop_reason = "" if is_last else agree_to_stop(run)
        is_saving = is_last or bool(stop_reason) or checkpointer.is_due(step + 1)
        if is_saving or recorder.is_due(step + 1):
            recorder.write(step, result)
        if is_saving:
            checkpointer.save(step + 1, recorder)
        if stop_reason:
            recorder.phase(step + 1, "stopped")
            if run.collectives.rank == 0:
                note_stopped(run.folder, step + 1, stop_reason)
            return False
    recorder.phase(run.num_steps, "done")
    run.done.write(step=run.num_steps, seconds=checkpointer.seconds)
    return True


def agree_to_stop(run: Run) -> str:
    """Return why the run stops after this step, or "". A collective: one rank's request is everybody's."""
    folder = run.folder if run.collectives.rank == 0 else None
    reason = run.stop.reason(folder)
    if int(run.collectives.sum(torch.tensor([bool(reason)]).int())) == 0:
        return ""
    return reason or run.stop.reason(folder) or "another rank was asked"
