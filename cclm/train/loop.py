"""The training loop, in the order in which things happen, and when it saves.

It knows no precision, no view and no parallelism.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cclm.checkpoint.background import BackgroundSaver
from cclm.checkpoint.collective import save_checkpoint
from cclm.config import CheckpointConfig
from cclm.data.batch import Batch
from cclm.data.options import Schedule
from cclm.distributed.agreement import Request, agree_on_step
from cclm.engine.protocol import Engine
from cclm.errors import Cause, CclmError
from cclm.run.checkpoints import SAVE_NAME
from cclm.run.ending import MemoryGuard
from cclm.run.signals import BEGAN, StopAsked, StopRequest
from cclm.run.status import DoneMarker
from cclm.run.stop import note_left, note_stopped
from cclm.track.sections import OTHER
from cclm.train.profile import StepProfile
from cclm.train.recorder import Recorder
from cclm.train.rollback import LeftOut, roll_back
from cclm.train.updates import Limits, update


@dataclass(kw_only=True)
class Checkpointer:
    """Saves every so many steps or minutes, and when it is told to."""

    engine: Engine[Any]
    run_folder: Path
    config: CheckpointConfig
    seconds_before: float
    """That earlier attempts of the run took, up to the checkpoint."""
    reference_outputs: Callable[[Engine[Any], Path], None]
    """Puts what the engine computes on a fixed probe into a checkpoint: exports are compared with it."""
    _began: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)
    _blocking_s: float = 0.0
    """That training waited for the newest save before it went on."""
    _request: int | None = None
    """The request by file that the newest save obeys, known by its time."""

    def __post_init__(self) -> None:
        """Make ready to write in the background; nothing is started before the first save."""
        self.saver: BackgroundSaver | None = None
        if self.config.background and sys.platform == "linux":
            self.saver = BackgroundSaver(self.engine, self.run_folder, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        keep, keep_every = self.config.keep, self.config.keep_every
        return {"keep": keep, "keep_every": keep_every, "reference_outputs": self.reference_outputs}

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far."""
        return self.seconds_before + time.monotonic() - self._began

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps."""
        return step % self.config.every_steps == 0

    def is_asked(self) -> bool:
        """Return whether one is wanted now: by `RUN/save_now`, or because the last one is too old. For rank 0."""
        minutes = self.config.every_minutes
        is_old = minutes is not None and time.monotonic() - self._saved >= 60 * minutes
        return is_old or self._asked() not in (None, self._request)

    def _asked(self) -> int | None:
        """The time of `RUN/save_now`, in nanoseconds, or None."""
        try:
            return (self.run_folder / SAVE_NAME).stat().st_mtime_ns
        except OSError:  # not there; or a network file system that does not answer: then the next step looks again
            return None

    def time_is_up(self) -> str:
        """Return why the run should end now, or "". For rank 0."""
        minutes = self.config.stop_after_minutes
        is_up = minutes is not None and time.time() - BEGAN >= 60 * minutes
        return f"checkpoint.stop_after_minutes {minutes:g}" if is_up else ""

    def save(self, step: int, recorder: Recorder, *, in_background: bool = True) -> None:
        """Save the state after `step` steps; in the background, if the configuration says so, too. A collective.

        Raises:
            CclmError: the run has diverged: what is there stays.
        """
        before, began = recorder.speed.clock.enter("checkpoint"), time.monotonic()
        recorder.look()
        recorder.health.check_updates(step)
        recorder.phase(step, "saving")
        recorder.sync()
        self.wait()
        self._request = self._asked()
        state = {"seconds": self.seconds, **recorder.state()}
        if self.saver is not None and in_background:
            self.saver.begin(step, state, partial(self._complete, recorder))
        else:
            save_checkpoint(self.engine, self.run_folder, step, state, **self._options)
        self._saved = time.monotonic()
        self._blocking_s = self._saved - began
        if self.saver is None or not self.saver.is_pending:
            self._complete(recorder, self._blocking_s, 0.0)
        recorder.health.saved()
        recorder.speed.restart()
        recorder.speed.clock.enter(before)

    @property
    def is_writing(self) -> bool:
        """Return whether this rank's share of a checkpoint is still being written."""
        return self.saver is not None and self.saver.is_writing

    def look(self) -> None:
        """Go on with a checkpoint whose writers have all answered. A collective."""
        if self.saver is not None and self.saver.is_pending:
            self.saver.go_on()

    def wait(self) -> None:
        """Wait until every checkpoint that was begun is complete. A collective."""
        if self.saver is not None:
            self.saver.wait()

    def close(self) -> None:
        """Leave what is not complete; no collective."""
        if self.saver is not None:
            self.saver.close()

    def saved(self) -> None:
        """Take note that the present state is saved already: nobody needs to ask any more. A collective."""
        self.wait()
        self._saved, self._request = time.monotonic(), self._asked()
        self._obeyed()

    def _complete(self, recorder: Recorder, total_s: float, waited_s: float) -> None:
        recorder.note("speed/checkpoint_total_s", total_s)
        recorder.note("speed/checkpoint_blocking_s", self._blocking_s + waited_s)
        self._obeyed()

    def _obeyed(self) -> None:
        """Take the request by file away, unless it was asked again meanwhile."""
        if self.engine.rank == 0 and self._request is not None and self._asked() == self._request:
            (self.run_folder / SAVE_NAME).unlink(missing_ok=True)


class EvaluationStopped(Exception):  # noqa: N818 - no error: somebody asked
    """Raised by an evaluation on every rank, when one is asked to stop while it measures what `step` updates made."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Evaluation:
    """What is measured while a run trains, and when it is done; here nothing. Its methods are called on every rank.

    All may raise `EvaluationStopped`.
    """

    is_asked: Callable[[], bool] = staticmethod(lambda: False)
    """Whether a rank is asked to stop; a collective. The loop sets it."""

    def is_due(self, step: int) -> bool:
        """Return whether something will be measured after `step` updates. No collective."""
        return False

    def resume(self, step: int) -> None:
        """Measure what is due at `step`, where a run goes on, if an earlier attempt was stopped before it had."""

    def after(self, step: int) -> bool:
        """Measure after `step` updates, if it is due; return whether it was: then these weights are saved."""
        return False

    def rewind(self, step: int) -> None:
        """Forget what was measured after `step` updates: the run has gone back to there."""

    def finish(self) -> None:
        """Measure what was trained, before the run counts as done."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training loop needs, wired by a program's `build`."""

    folder: Path
    engine: Engine[Batch]
    batches: Callable[[int], Generator[tuple[Batch, Batch], None, None]]
    """From a step on: each batch as it was read, and on the device; none of the steps that are left out."""
    schedule: Schedule
    start_step: int
    num_steps: int
    recorder: Recorder
    checkpointer: Checkpointer
    done: DoneMarker
    stop: StopRequest
    memory: MemoryGuard
    evaluation: Evaluation = field(default_factory=Evaluation)
    left_out: LeftOut = field(default_factory=LeftOut)
    """Grows with each rollback."""
    profile: StepProfile | None = None
    """Of the first steps."""
    configuration: str = ""
    """A hash of all that decides a step, which ranks compare."""


def train(run: Run) -> bool:
    """Train from `run.start_step` to `run.num_steps`, then write the done marker.

    A run that diverges goes back to a healthy checkpoint, as often as it may (`cclm.train.rollback`).

    Returns False if it was asked to stop before: then it has saved, and the same command goes on from there.

    Raises:
        CclmError: the run has diverged, or too many samples were bad; on every rank alike.
        DataError: a whole neighbourhood of samples is broken; on the rank that reads it (the launcher ends the others).
    """
    run.evaluation.is_asked = partial(is_anybody_asked, run)
    run.recorder.health.before_end = run.checkpointer.wait
    step = run.start_step
    while True:
        try:
            return _train(run, step)
        except EvaluationStopped as stopped:
            save_and_stop(run, stopped.step)  # what is saved was not measured: `Evaluation.resume` does that
            return False
        except CclmError as error:
            step = roll_back(run, error)


def _train(run: Run, start_step: int) -> bool:
    recorder, checkpointer = run.recorder, run.checkpointer
    with closing(run.batches(start_step)) as batches:  # a run that goes back reads anew: no worker may stay behind
        recorder.phase(start_step, "training")
        run.stop.begin()
        run.evaluation.resume(start_step)
        is_owed = False  # a regular checkpoint that was put off
        for step in range(start_step, run.num_steps):
            if step in run.left_out:
                recorder.leave_out(step)
            elif not do_step(run, step, batches):
                save_and_stop(run, step)
                return False
            is_last = step + 1 == run.num_steps
            health = recorder.health
            is_saving = is_last or checkpointer.is_due(step + 1) or (is_owed and not health.is_doubtful)
            if is_saving or recorder.is_due(step + 1):
                recorder.write(step)
            health.check(step)
            if run.evaluation.is_due(step + 1):
                checkpointer.wait()  # it may pin the next one: the best one so far must not go before that is complete
            # Before it is saved: what a kill leaves is evaluated. Not what is not saved: the best epoch must be there.
            with recorder.speed.clock.inside("evaluation"):
                was_evaluated = not health.is_doubtful and run.evaluation.after(step + 1)
            if is_saving or was_evaluated:
                is_owed = not save(run, step + 1, is_last=is_last)
        checkpointer.wait()
        run.evaluation.finish()
    recorder.phase(run.num_steps, "done", Cause.DONE)
    run.done.write(step=run.num_steps, seconds=checkpointer.seconds)
    return True


def do_step(run: Run, step: int, batches: Iterator[tuple[Batch, Batch]]) -> bool:
    """Do a step, and count it; return False if a rank is asked to stop: then it was not done."""
    if run.profile is not None:
        run.profile.begin_step()
    taken = next_batch(run, batches)
    # Before the work, not behind it: a rank that is told while it waits for a batch need not wait any longer.
    with run.recorder.speed.clock.inside("communication"):
        request = request_before(run, step, taken)
    if Request.STOP in request:
        return False
    if Request.SAVE in request:
        save(run, step)
    elif Request.WRITING not in request:
        run.checkpointer.look()
    assert taken is not None
    batch, on_device = taken
    assert batch.step == step, f"the loader gave step {batch.step} at step {step}"
    health = run.recorder.health
    limits = Limits(max_loss=health.config.max_loss, max_norm=health.max_norm)
    clock = run.recorder.speed.clock
    result = update(run.engine, on_device, run.schedule, partial(is_anybody_asked, run), limits, clock)
    clock.enter(OTHER)
    if result is None:
        return False
    run.recorder.add(batch, result)
    run.memory.passed()
    return True


def next_batch(run: Run, batches: Iterator[tuple[Batch, Batch]]) -> tuple[Batch, Batch] | None:
    """Return the next batch; None if there is a request to stop, or one comes while this rank waits."""
    try:
        with run.recorder.speed.clock.inside("data"), run.stop.interrupting():
            return next(batches)
    except StopAsked:
        return None


def request_before(run: Run, step: int, taken: tuple[Batch, Batch] | None) -> Request:
    """Return what a rank is asked for before a step. One collective; ConfigError where ranks disagree on the step."""
    own = Request.NOTHING
    if taken is None or own_reason(run):
        own = Request.STOP
    elif run.engine.rank == 0 and not run.recorder.health.is_doubtful and run.checkpointer.is_asked():
        own = Request.SAVE
    if run.checkpointer.is_writing:
        own |= Request.WRITING
    parts = {} if taken is None else dict(enumerate(taken[1].parts))
    known = {
        "configuration": run.configuration,
        "bad steps": str(run.recorder.health.num_bad),
        "steps left out": str(run.left_out),
    }
    return agree_on_step(run.engine.collectives, step, parts, own, known)


def is_anybody_asked(run: Run) -> bool:
    """Return whether a rank is asked to stop, between micro-batches. A collective."""
    return any(asked for (asked,) in run.engine.collectives.numbers([bool(own_reason(run))]))


def own_reason(run: Run) -> str:
    """Return why this rank is asked to stop, or ""."""
    if run.engine.rank:
        return run.stop.reason(None)
    return run.stop.reason(run.folder) or run.checkpointer.time_is_up()


def save(run: Run, step: int, *, is_last: bool = False, in_background: bool = True) -> bool:
    """Save after `step` steps, if any was done since the last checkpoint; return whether it is saved. A collective.

    While the last steps are bad it is put off; the last of all is not saved then (CclmError, cause DIVERGED).
    """
    run.recorder.write(step - 1, is_regular=False)
    health = run.recorder.health
    if not health.has_changed:
        run.checkpointer.saved()
    elif is_last or not health.is_doubtful:
        run.checkpointer.save(step, run.recorder, in_background=in_background and not is_last)
    run.recorder.phase(step, "training")
    return not health.has_changed


def save_and_stop(run: Run, step: int) -> None:
    """Save, and note why the run ends. A collective.

    In the middle of bad steps nothing is saved: the next attempt goes on from the last checkpoint.
    """
    reason = own_reason(run) or run.stop.reason(run.folder) or "another rank was asked"
    is_saved = save(run, step, in_background=False)
    run.checkpointer.wait()  # for the one before, if this one was put off
    run.recorder.phase(step, "stopped", Cause.STOPPED, reason)
    if run.engine.rank == 0 and is_saved:
        note_stopped(run.folder, step, reason)
    elif run.engine.rank == 0:
        note_left(run.folder, reason)
