"""What comes after an attempt of a run, decided from fields and files: never from the job's state, nor from words.

done marker                                     → done
asked to stop, and saved                        → another attempt, or none if a person asked
a rank's cause is one that only the user mends  → give up
newer checkpoint than at the start              → another attempt
max_tries attempts without one                  → give up
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cclm.run.causes import MENDED_BY_USER, Cause
from cclm.run.checkpoints import newest_complete, read_marker
from cclm.run.status import DoneMarker, DoneRecord, RankEnd, rank_to_blame, read_ends, task_codes
from cclm.run.stop import StopKind, StoppedRecord, read_stopped
from launch.plan.slurm_job import find_plan
from launch.plan.sweep import is_sweep, points_not_done, read_sweep
from launch.slurm.history import STOPPED, Attempt, attempts_since_submission, is_stopped_by_user, read_history, tries_at


@dataclass(frozen=True, kw_only=True)
class EndedAttempt:
    """What is known of an attempt that has just ended."""

    first_step: int
    """Newest complete checkpoint when it began."""
    saved_step: int
    """The same now."""
    done: DoneRecord | None
    stopped: StoppedRecord | None
    failure: RankEnd | None
    """The rank to blame; None if no rank told of a failure."""
    tries: int
    """Attempts that began at `saved_step` and got no further, this one included."""
    max_tries: int
    is_ended_from_outside: bool
    """The job got TERM. It must not requeue itself then: a cancelled job would come back, and one that is preempted
    comes back by Slurm's own doing."""
    is_stopped_by_user: bool
    """A person wants no further attempt."""


@dataclass(frozen=True, kw_only=True)
class RestartDecision:
    """What to do now."""

    exit_status: str
    """"done", "stopped" or "failed"."""
    goes_on: bool
    """Whether there is another attempt."""
    step: int
    cause: Cause
    reason: str
    """A sentence, for people."""


def decide_restart(ended: EndedAttempt) -> RestartDecision:
    """Decide what comes after an attempt of a run that trains."""
    step, failure = ended.saved_step, ended.failure
    if ended.done is not None:
        return RestartDecision(
            exit_status="done", goes_on=False, step=ended.done.step, cause=Cause.DONE,
            reason=f"done at step {ended.done.step}",
        )  # fmt: skip
    status, goes_on, then = "failed", True, f"try {ended.tries} of {ended.max_tries} at step {step}"
    if ended.stopped is not None:
        status, cause = STOPPED, Cause.STOPPED
        told, then = f"saved at step {ended.stopped.step}: {ended.stopped.reason}", "goes on in another attempt"
        if ended.stopped.kind is StopKind.USER:
            goes_on, cause, then = False, Cause.STOPPED_BY_USER, ""
    else:
        cause = Cause.EXIT if failure is None else failure.cause
        told = str(failure) if failure else "the step ended without a word from any rank: see logs/slurm.log"
        if cause in MENDED_BY_USER:
            goes_on, then = False, "a retry would not help"
        elif step > ended.first_step:
            then = f"goes on from step {step}"
        elif ended.tries >= ended.max_tries:
            goes_on, then = False, ""
            told = f"{ended.tries} attempts began at step {step} and none saved a newer checkpoint; the last: {told}"
    if goes_on and ended.is_stopped_by_user:
        goes_on, then = False, "stopped by the user"
        cause = Cause.STOPPED_BY_USER if status == STOPPED else cause
    elif goes_on and ended.is_ended_from_outside:
        goes_on, then = False, "ended from outside (TERM), so it does not requeue itself"
    reason = f"{told}; {then}" if then else told
    return RestartDecision(exit_status=status, goes_on=goes_on, step=step, cause=cause, reason=reason)


def look_at_end(run_folder: Path, max_tries: int, job: str, *, is_ended_from_outside: bool) -> EndedAttempt:
    """Read what is known of the attempt of this job that has just ended."""
    history, step = read_history(run_folder), newest_step(run_folder)
    attempts = attempts_since_submission(history)
    return EndedAttempt(
        first_step=attempts[-1].first_step,
        saved_step=step,
        done=DoneMarker(run_folder).read(),
        stopped=read_stopped(run_folder),
        failure=rank_to_blame(read_ends(run_folder, attempts[-1].number)),
        tries=tries_at(attempts, step),
        max_tries=max_tries,
        is_ended_from_outside=is_ended_from_outside,
        is_stopped_by_user=is_stopped_by_user(history, job),
    )


def decide_command(run_folder: Path, attempt: Attempt, num_tasks: int) -> RestartDecision:
    """Decide about a job whose success is that every task ended with code 0: it has no second attempt by itself."""
    ends = read_ends(run_folder, attempt.number)
    failure = rank_to_blame(ends)
    if failure is None and len(ends) == num_tasks:
        status, cause, reason = "done", Cause.DONE, f"all {num_tasks} task(s) ended with code 0"
    elif failure is None:
        status, cause = "failed", Cause.EXIT
        reason = f"{num_tasks - len(ends)} of {num_tasks} task(s) ended without a word"
    else:
        status, cause, reason = "failed", failure.cause, str(failure)
    return RestartDecision(exit_status=status, goes_on=False, step=0, cause=cause, reason=reason)


def newest_step(run_folder: Path) -> int:
    """Return the step of the newest complete checkpoint; 0 without one."""
    newest = newest_complete(run_folder)
    return 0 if newest is None else read_marker(newest).step


def tasks_left(run_folder: Path, count: int) -> list[int]:
    """Return the tasks of an array job that have not ended with code 0."""
    codes = task_codes(run_folder)
    return [number for number in range(count) if codes.get(number) != 0]


def why_not_done(run_folder: Path) -> str:
    """Return why a run submitted to Slurm does not count as done; "" if it does. A sweep is done if all points are."""
    if is_sweep(run_folder):
        missing = points_not_done(run_folder, len(read_sweep(run_folder).points))
        return f"point(s) {', '.join(map(str, missing))} are not done" if missing else ""
    plan = find_plan(run_folder)
    if plan is not None and plan.request.array:
        left = tasks_left(run_folder, plan.request.array)
        return f"array task(s) {', '.join(map(str, left))} have not ended with code 0" if left else ""
    if plan is None or plan.request.is_training:
        return "" if DoneMarker(run_folder).read() is not None else "there is no done.json"
    ends = [event for event in read_history(run_folder) if event.event == "end"]
    return "" if ends and ends[-1].exit_status == "done" else "its last attempt did not end well"
