"""A fake preemption, before a real one matters: does the job save, come back, and go on where it was?

    trains ─► asked to save (or killed) ─► attempt ends ─► waits again ─► next attempt begins ─► trains further

Every station is decided by what the real event would leave: the history, the checkpoint, Slurm's queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cclm.errors import ConfigError
from cclm.files.text import duration
from launch.control.stop import look_at_answered
from launch.plan.slurm_job import read_plan
from launch.slurm.history import STOPPED, Attempt, attempts_since_submission, read_history, tries_at
from launch.slurm.jobs import ask_slurm
from launch.slurm.restart import newest_step
from launch.watch.status import RunNow, look_at_one

POLL_S = 0.5
CREDENTIAL_S = 2.0
"""A node refuses a job whose credential was revoked in the very second in which the new one was made."""
QUEUE_S = 120
"""A requeued job waits so long: Slurm's own rule."""


@dataclass(frozen=True, kw_only=True)
class Station:
    """One line of the drill."""

    name: str
    seconds: float
    found: str
    is_good: bool


Found: TypeAlias = "tuple[str, bool] | None"
"""What ended the wait at a station, and whether that is good; None: it goes on."""


def drillable(run_folder: Path) -> RunNow:
    """Return the run now, if a drill makes sense. Raise ConfigError if the run does not train, or has no job,
    CclmError if Slurm does not tell."""
    (run,) = look_at_answered([run_folder])
    if run.kind != "training" or not run.may_go_on:
        state = run.state + (f" ({run.reason})" if run.reason else "")
        raise ConfigError(
            where=str(run_folder), expected="a training run with a job that runs or waits", got=f"{run.kind}: {state}",
            do="Only a run that trains can save." if run.kind in ("command", "array") else "Submit it first.",
        )  # fmt: skip
    return run


def price(*, kill: bool) -> str:
    """Say what the drill costs."""
    queue = f"then up to {QUEUE_S} s in the queue (others may take the nodes meanwhile) and a new start of the ranks"
    if kill:
        return f"this kills an attempt: what was trained since the last checkpoint is done again, {queue}"
    return f"this costs one save, {queue}; not a step is done again"


class Drill:
    """One drill on a run that trains, or soon will."""

    def __init__(self, run_folder: Path, *, kill: bool, patience_s: float) -> None:
        self.run_folder, self.kill, self.patience_s = run_folder, kill, patience_s
        self.max_tries = read_plan(run_folder).request.max_tries
        self.job = ""
        self.number = -1
        """The attempt that the drill is about."""
        self.saved = 0
        """Step from which the next attempt must begin, at least."""

    def stations(self) -> Iterator[Station]:
        """Go through the stations, to the end or to the first that is not reached."""
        steps: tuple[tuple[str, Callable[[RunNow], Found]], ...] = (
            ("trains", self._trains),
            ("killed" if self.kill else "asked to save", self._strike),
            ("attempt ends", self._attempt_ends),
            ("waits again", self._waits),
            ("start now", self._start_now),
            ("next attempt", self._next_attempt),
            ("trains further", self._trains_further),
        )
        for name, look in steps:
            began = time.monotonic()
            while (found := look(look_at_one(self.run_folder))) is None:
                if time.monotonic() - began >= self.patience_s:
                    found = f"not within {duration(self.patience_s)}", False
                    break
                time.sleep(POLL_S)
            yield Station(name=name, seconds=time.monotonic() - began, found=found[0], is_good=found[1])
            if not found[1]:
                return

    def _trains(self, run: RunNow) -> Found:
        step = step_of(run)
        if run.phase != "training" or step is None or step <= run.attempts[-1].first_step:
            return if_over(run)
        self.job, self.number, self.saved = run.job, run.attempts[-1].number, run.progress.checkpoint_step
        return f"attempt {self.number} is at step {step}, saved at step {self.saved}", True

    def _strike(self, run: RunNow) -> Found:
        tries = tries_at(attempts_since_submission(read_history(self.run_folder)), newest_step(self.run_folder))
        if self.kill and tries >= self.max_tries:
            spent = f"attempt {tries} of {self.max_tries} that began at this step"
            return f"{spent}: killed before it saves, the run gives up", False
        soft, hard = ("scancel", "--batch", "--signal=USR1", self.job), ("scontrol", "requeue", self.job)
        command = hard if self.kill else soft
        answer = ask_slurm(command)
        return answer.stderr.strip() or " ".join(command), answer.returncode == 0

    def _attempt_ends(self, run: RunNow) -> Found:
        attempt = next(attempt for attempt in run.attempts if attempt.number == self.number)
        is_cut_off = self.kill and run.may_go_on and run.state not in ("RUNNING", "COMPLETING")
        if not attempt.exit_status and not is_cut_off:
            return if_over(run)
        self.saved = newest_step(self.run_folder)
        if not attempt.exit_status:
            return f"cut off ({run.state}); saved at step {self.saved}", True
        return attempt.reason, attempt.exit_status == STOPPED or self.kill

    def _waits(self, run: RunNow) -> Found:
        if self._next(run) is not None:
            return f"job {run.job} runs already", True
        if run.state != "PENDING":
            return if_over(run)
        self.job = run.job
        return f"job {run.job} waits" + (f" ({run.reason})" if run.reason else ""), True

    def _start_now(self, run: RunNow) -> Found:
        if run.state != "PENDING":
            return f"job {run.job} is {run.state}", True
        time.sleep(CREDENTIAL_S)
        command = ("scontrol", "update", f"jobid={self.job}", "StartTime=now")
        answer = ask_slurm(command)
        if answer.returncode == 0:
            return " ".join(command), True
        return f"refused ({answer.stderr.strip()}): it waits its {QUEUE_S} s", True

    def _next_attempt(self, run: RunNow) -> Found:
        attempt = self._next(run)
        if attempt is None:
            return if_over(run)
        text = f"attempt {attempt.number} begins at step {attempt.first_step} on {attempt.nodes}"
        is_lost = attempt.first_step < self.saved
        return text + (f", but step {self.saved} was saved" if is_lost else ""), not is_lost

    def _trains_further(self, run: RunNow) -> Found:
        attempt, step = self._next(run), step_of(run)
        assert attempt is not None, "the station before has seen it"
        if run.progress.is_done:
            return f"done at step {run.progress.step}", True
        if attempt.exit_status:
            return f"attempt {attempt.number} {attempt.exit_status}: {attempt.reason}", False
        return (f"step {step}", True) if step is not None and step > attempt.first_step else if_over(run)

    def _next(self, run: RunNow) -> Attempt | None:
        """The first attempt after the one that the drill is about."""
        return next((attempt for attempt in run.attempts if attempt.number > self.number), None)


def if_over(run: RunNow) -> Found:
    """Say how a run ended that does not go on; None: it may."""
    words = f"job {run.job} is {run.state}, {run.phase}: {run.last_word or 'without a word'}"
    return None if run.may_go_on else (words, False)


def step_of(run: RunNow) -> int | None:
    """Return the step of the present attempt, by its first rank; None: it has not spoken yet."""
    return run.ranks[0].step if run.ranks else None
