"""The training loop, in the order in which things happen, and when it saves.

It knows no precision, no view and no parallelism.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cclm.checkpoint.background import BackgroundSaver
from cclm.checkpoint.collective import save_checkpoint
from cclm.checkpoint.copies import Copier
from cclm.checkpoint.options import CheckpointConfig
from cclm.data.batch import Batch
from cclm.data.options import Schedule
from cclm.distributed.agreement import Request
from cclm.engine.protocol import Engine
from cclm.errors import Cause, CclmError
from cclm.run.checkpoints import SAVE_NAME, step_of, visible_checkpoints
from cclm.run.ending import MemoryGuard
from cclm.run.signals import BEGAN_MONOTONIC, StopAsked, StopRequest
from cclm.run.status import DoneMarker
from cclm.run.stop import note_left, note_stopped
from cclm.run.watch import START, Watch
from cclm.track.sections import OTHER
from cclm.train.asked import is_anybody_asked, own_reason, request_before
from cclm.train.profile import StepProfile
from cclm.train.recorder import Recorder
from cclm.train.rollback import LeftOut, roll_back
from cclm.train.shared_evaluation import Evaluation, EvaluationStopped
from cclm.train.updates import update

LONGEST_COPY_S = 900.0
"""That the end of a run waits for copies; what is missing then is copied by the next start."""
STOPPED_COPY_S = 20.0
"""The same of a run that is asked to stop: whoever asks may wait no longer."""
LOOK_S = 0.5
"""Between two looks at them."""


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
    note: Callable[[str, float], None] = lambda name, value: None
    """Lets a number stand in the next line of the log."""
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
            self.saver = BackgroundSaver(self.engine, self.run_folder, self.config.keep, *self._options)
        self.copier: Copier | None = None
        if self.config.copy_to is not None and self.engine.rank == 0:
            keep = self.config.keep, self.config.keep_every
            self.copier = Copier(self.run_folder, self.config.copy_to, *keep, self.note)
            self.copier.begin()  # what an attempt before has left

    @property
    def _options(self) -> tuple[int | None, Callable[[Engine[Any], Path], None]]:
        return self.config.keep_every, self.reference_outputs

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
        is_up = minutes is not None and time.monotonic() - BEGAN_MONOTONIC >= 60 * minutes
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
        here = visible_checkpoints(self.run_folder) if self.engine.rank == 0 else ()  # which removes
        keep = self.config.keep + len(recorder.health.unhealthy(map(step_of, here)))  # only healthy ones count
        if self.saver is not None and in_background:
            self.saver.keep = keep
            self.saver.begin(step, state, partial(self._complete, recorder, began))
        else:
            save_checkpoint(self.engine, self.run_folder, step, state, keep, *self._options)
        self._saved = time.monotonic()
        self._blocking_s = self._saved - began
        if self.saver is None or not self.saver.is_pending:
            self._complete(recorder, began, 0.0)
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
        if self.copier is not None:
            self.copier.look()

    def finish_copies(self, alive: Callable[[], None], longest_s: float) -> None:
        """Wait for the copies, but no longer; `alive` is called now and then. A collective."""
        end = time.monotonic() + longest_s
        while self.config.copy_to is not None:
            if self.copier is not None:
                self.copier.look()
            own = self.copier is not None and self.copier.is_busy and time.monotonic() < end
            if not any(busy for (busy,) in self.engine.collectives.numbers([own])):
                return
            alive()
            time.sleep(LOOK_S)

    def wait(self) -> None:
        """Wait until every checkpoint that was begun is complete. A collective."""
        if self.saver is not None:
            self.saver.wait()

    def close(self) -> None:
        """Leave what is not complete; no collective."""
        if self.saver is not None:
            self.saver.close()
        if self.copier is not None:
            self.copier.close()

    def saved(self) -> None:
        """Take note that the present state is saved already: nobody needs to ask any more. A collective."""
        self.wait()
        self._saved, self._request = time.monotonic(), self._asked()
        self._obeyed()

    def _complete(self, recorder: Recorder, began: float, waited_s: float) -> None:
        recorder.note("speed/checkpoint_total_s", time.monotonic() - began)  # all that it waited for lies in there
        recorder.note("speed/checkpoint_blocking_s", self._blocking_s + waited_s)
        self._obeyed()
        if self.copier is not None:
            self.copier.begin()

    def _obeyed(self) -> None:
        """Take the request by file away, unless it was asked again meanwhile."""
        if self.engine.rank == 0 and self._request is not None and self._asked() == self._request:
            (self.run_folder / SAVE_NAME).unlink(missing_ok=True)


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
    watch: Watch
    """Is told what this rank does."""
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
    run.evaluation.is_asked, run.evaluation.beat = partial(is_anybody_asked, run), run.watch.beat
    run.evaluation.record = run.recorder.write_evaluation
    run.recorder.health.before_end = run.checkpointer.wait
    step = run.start_step
    while True:
        try:
            return _train(run, step)
        except EvaluationStopped as stopped:
            save_and_stop(run, stopped.step)  # what is saved was not measured: `Evaluation.resume` does that
            return False
        except CclmError as error:
            with run.watch.section(START, step):
                step = roll_back(run, error)


def _train(run: Run, start_step: int) -> bool:
    recorder, checkpointer, watch = run.recorder, run.checkpointer, run.watch
    with closing(run.batches(start_step)) as batches:  # a run that goes back reads anew: no worker may stay behind
        recorder.phase(start_step, "training")
        run.stop.begin()
        watch.begin()
        with watch.section("evaluate", start_step):
            run.evaluation.resume(start_step)
        recorder.speed.begin()
        is_owed = False  # a regular checkpoint that was put off
        for step in range(start_step, run.num_steps):
            with watch.section("step", step):
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
                # Before it is saved: what a kill leaves is evaluated. Not what is not saved: the best epoch must be
                # there.
                was_evaluated = evaluate(run, step + 1)
                if is_saving or was_evaluated:
                    is_owed = not save(run, step + 1, is_last=is_last)
        with watch.section("save", run.num_steps):
            checkpointer.wait()
        with watch.section("evaluate", run.num_steps):
            run.evaluation.finish()
        with watch.section("save", run.num_steps):
            finish_copies(run, run.num_steps, LONGEST_COPY_S)
    recorder.phase(run.num_steps, "done", Cause.DONE)
    run.done.write(step=run.num_steps, seconds=checkpointer.seconds)
    return True


def finish_copies(run: Run, step: int, longest_s: float) -> None:
    """Wait for copies, and say that this rank is alive. A collective."""

    def alive() -> None:
        run.recorder.phase(step, "copying")
        run.watch.beat()

    run.checkpointer.finish_copies(alive, longest_s)


def evaluate(run: Run, step: int) -> bool:
    """Measure after `step` steps, if it is due and no step is in doubt; return whether it was."""
    is_due = run.evaluation.is_due(step)
    if is_due:
        run.recorder.write(step - 1, is_regular=False)
    with (
        run.watch.section("evaluate", step) if is_due else nullcontext(),
        run.recorder.speed.clock.inside("evaluation"),
    ):
        return not run.recorder.health.is_doubtful and run.evaluation.after(step)


def do_step(run: Run, step: int, batches: Iterator[tuple[Batch, Batch]]) -> bool:
    """Do a step, and count it; return False if a rank is asked to stop: then it was not done."""
    if run.profile is not None:
        with run.watch.section("save", step):  # to write a trace takes its time
            run.profile.begin_step()
    with run.watch.section("data", step):
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
    if (order := run.engine.order) is not None:
        order.begin()
    clock = run.recorder.speed.clock
    result = update(
        run.engine,
        on_device,
        run.schedule,
        partial(is_anybody_asked, run),
        clock,
        max_loss=health.config.max_loss,
        max_norm=health.max_norm,
    )
    clock.enter(OTHER)
    if result is None:
        return False
    if order is not None:
        order.end()
    run.recorder.add(batch, result)
    run.memory.passed()
    return True


def next_batch(run: Run, batches: Iterator[tuple[Batch, Batch]]) -> tuple[Batch, Batch] | None:
    """Return the next batch; None if there is a request to stop, or one comes while this rank waits."""
    try:
        with run.recorder.pace.fetching(), run.recorder.speed.clock.inside("data"), run.stop.interrupting():
            return next(batches)
    except StopAsked:
        return None


def save(run: Run, step: int, *, is_last: bool = False, in_background: bool = True) -> bool:
    """Save after `step` steps, if any was done since the last checkpoint; return whether it is saved. A collective.

    While the last steps are bad it is put off; the last of all is not saved then (CclmError, cause DIVERGED).
    """
    with run.watch.section("save", step):
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
    with run.watch.section("save", step):
        run.checkpointer.wait()  # for the one before, if this one was put off
    run.recorder.phase(step, "stopped", Cause.STOPPED, reason)
    if run.engine.rank == 0 and is_saved:
        note_stopped(run.folder, step, reason)
    elif run.engine.rank == 0:
        note_left(run.folder, reason)
    with run.watch.section("save", step):
        run.checkpointer.finish_copies(run.watch.beat, STOPPED_COPY_S)
