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
from cclm.run.status import DoneMarker, rank_to_blame, read_ends, task_codes
from cclm.run.stop import StopKind, read_stopped
from launch.plan.slurm_job import find_plan
from launch.plan.sweep import is_sweep, points_not_done, read_sweep
from launch.slurm.history import STOPPED, Attempt, attempts_since_submission, is_stopped_by_user, read_history, tries_at


@dataclass(frozen=True, kw_only=True)
class RestartDecision:
    """What to do now."""

    exit_status: str
    """"done", "stopped" or "failed"."""
    goes_on: bool
    step: int
    cause: Cause
    reason: str


def decide_restart(run_folder: Path, max_tries: int, job: str, *, is_ended_from_outside: bool) -> RestartDecision:
    """Decide what comes after the attempt of this job, of a run that trains, that has just ended.
    `is_ended_from_outside`: the job got TERM. It must not requeue itself then: a cancelled job would come back, and one
    that is preempted comes back by Slurm's own doing."""
    done, stopped, step = DoneMarker(run_folder).read(), read_stopped(run_folder), newest_step(run_folder)
    history = read_history(run_folder)
    attempts = attempts_since_submission(history)
    failure, tries = rank_to_blame(read_ends(run_folder, attempts[-1].number)), tries_at(attempts, step)
    if done is not None:
        return RestartDecision(
            exit_status="done", goes_on=False, step=done.step, cause=Cause.DONE, reason=f"done at step {done.step}"
        )
    status, goes_on, then = "failed", True, f"try {tries} of {max_tries} at step {step}"
    if stopped is not None:
        status, cause = STOPPED, Cause.STOPPED
        told, then = f"saved at step {stopped.step}: {stopped.reason}", "goes on in another attempt"
        if stopped.kind is StopKind.USER:
            goes_on, cause, then = False, Cause.STOPPED_BY_USER, ""
    else:
        cause = Cause.EXIT if failure is None else failure.cause
        told = str(failure) if failure else "the step ended without a word from any rank: see logs/slurm.log"
        if cause in MENDED_BY_USER:
            goes_on, then = False, "a retry would not help"
        elif step > attempts[-1].first_step:
            then = f"goes on from step {step}"
        elif tries >= max_tries:
            goes_on, then = False, ""
            told = f"{tries} attempts began at step {step} and none saved a newer checkpoint; the last: {told}"
    if goes_on and is_stopped_by_user(history, job):
        goes_on, then = False, "stopped by the user"
        cause = Cause.STOPPED_BY_USER if status == STOPPED else cause
    elif goes_on and is_ended_from_outside:
        goes_on, then = False, "ended from outside (TERM), so it does not requeue itself"
    reason = f"{told}; {then}" if then else told
    return RestartDecision(exit_status=status, goes_on=goes_on, step=step, cause=cause, reason=reason)


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
