"""End runs: let them save and stay stopped (`stop`), or take their jobs away (`cancel`). However many runs there are,
Slurm is asked a few questions.

What a person wants is also noted in the history, so that it holds whatever the job does meanwhile: an attempt that is
about to begin reads it there (`launch/slurm/attempt.py`), and a job that crashes while it was asked does not come back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cclm.errors import CclmError, ConfigError
from cclm.run import stop as request
from launch.slurm.history import Event, add_event
from launch.slurm.jobs import JobNow, ask_slurm, live_jobs, told_by_slurm
from launch.slurm.restart import newest_step
from launch.watch.status import RUNNING, UNKNOWN, RunNow, look_at, look_at_one

POLL_S = 0.3
ASK_S = 2.0
"""So often Slurm is asked while we wait."""
CANCEL_S = 90.0
"""Slurm lets a cancelled job live for KillWait (30 s by default) after TERM."""
REASON = "a person asked"

Say = Callable[[Path, str], None]
"""Receives a run's folder, and a line about it."""


def look_at_answered(run_folders: Sequence[Path]) -> list[RunNow]:
    """Look at runs of which the state must be known. Raise CclmError if a folder cannot be read, or Slurm does not
    tell."""
    runs, unreadable, _ = look_at(run_folders)
    for path in unreadable:
        look_at_one(path)  # which says what is wrong
    unknown = next((run for run in runs if run.state == UNKNOWN), None)
    if unknown is not None:
        where, expected = str(unknown.run_folder), "the state of its job"
        raise CclmError(where=where, expected=expected, got=unknown.reason, do="Try again.")
    return runs


def stop(run_folders: Sequence[Path], *, say: Say) -> list[Path]:
    """Let runs save and stay stopped; return those that there is something to wait for. Raise ConfigError if a job
    that cannot save is running, CclmError if Slurm does not answer."""
    runs = look_at_answered(run_folders)
    jobs = live_jobs(*(run.run_folder for run in runs if not run.is_local and not run.progress.is_done))
    asked = []
    for run in runs:
        if run.is_local and run.state == RUNNING:
            request.ask_to_stop(run.run_folder, REASON, request.StopKind.USER)
            where = run.run_folder / request.STOP_NAME
            say(run.run_folder, f"asked to save and end after its present step, through {where}")
            asked.append(run.run_folder)
        elif run.is_local or (len(runs) == 1 and not jobs.get(run.run_folder)):
            why = f"it does not run ({run.last_word})" if run.is_local else "no job of it waits or runs"
            done = f"done at step {run.progress.step}: there is nothing to stop"
            say(run.run_folder, done if run.progress.is_done else f"{why}; {goes_on_from(run)}")
    busy = [run for run in runs if jobs.get(run.run_folder)]
    for run in busy:
        if run.kind == "command" and any(job.state != "PENDING" for job in jobs[run.run_folder]):
            raise ConfigError(
                where=str(run.run_folder), expected="a run that trains, and can save", got="a command that is running",
                do="Wait for it, or end it without saving: python -m launch cancel.",
            )  # fmt: skip
    asked += _stop_jobs([run for run in busy if run.kind != "array"], jobs, say)
    arrays = [run.run_folder for run in busy if run.kind == "array"]
    _scancel("--state=PENDING", *sorted({job.base for path in arrays for job in jobs[path]}))
    for run in look_at_answered(arrays):
        counts = str(run.array_tasks)
        say(run.run_folder, f"the tasks that waited are cancelled ({counts}); those that run go on to their end")
    return asked


def _stop_jobs(runs: Sequence[RunNow], jobs: dict[Path, list[JobNow]], say: Say) -> list[Path]:
    """Take away jobs that wait, ask those that run; return the runs that were asked."""
    for run in runs:
        for job in jobs[run.run_folder]:
            add_event(run.run_folder, Event(event="stop", job=job.job, reason="stop"))
    waiting = [job for run in runs for job in jobs[run.run_folder] if job.state == "PENDING"]
    # One that has begun to run since we looked is left alone. Not so an array's task: with --state scancel takes the
    # whole array that waits, so a point of a sweep goes by its name alone; had it just begun, it would end anyway.
    _scancel("--state=PENDING", *(job.job for job in waiting if job.array_task is None))
    _scancel(*(job.job for job in waiting if job.array_task is not None))
    # A job that waited a moment ago may run by now; it finds the request in the history, or in the file.
    remaining = live_jobs(*(run.run_folder for run in runs))
    asked = [run for run in runs if remaining[run.run_folder]]
    for run in runs:
        if run in asked:
            request.ask_to_stop(run.run_folder, REASON, request.StopKind.USER)
        else:
            name = jobs[run.run_folder][-1].job
            say(run.run_folder, f"job {name} was waiting and is cancelled: nothing to save; {goes_on_from(run)}")
    # Nobody is signalled before a rank has spoken in this attempt: USR1 would kill what checks the nodes.
    signalled = [job.job for run in asked if run.ranks for job in remaining[run.run_folder]]
    if signalled:
        ask_slurm(["scancel", "--signal=USR1", *signalled])
    for run in asked:
        name = remaining[run.run_folder][-1].job
        say(run.run_folder, f"job {name} ({run.phase}) is asked to save and to stop after its present step")
    return [run.run_folder for run in asked]


def _scancel(*words: str) -> None:
    if all(word.startswith("--") for word in words):
        return  # no job is meant
    expected = f"an end of job {', '.join(words)}"
    told_by_slurm(["scancel", *words], expected=expected, do="Only the owner may.", tolerated="Invalid job id")


def wait_until_stopped(run_folders: Sequence[Path], wait_s: float, *, say: Say) -> bool:
    """Wait until runs have saved (or are done) and their jobs are over; return whether it is so in time."""
    began, left, is_good = time.monotonic(), list(run_folders), True
    while left and time.monotonic() - began < wait_s:
        for run in look_at_answered(left):
            if not run.may_go_on:
                say(run.run_folder, f"{run.last_word or run.phase}; {goes_on_from(run)}")
                is_good &= run.phase in ("done", "stopped")
                left.remove(run.run_folder)
        time.sleep(min(ASK_S, max(wait_s - (time.monotonic() - began), 0.0)) if left else 0.0)
    for path in left:
        say(path, f"not stopped after {wait_s:g} s: `python -m launch status {path}` shows what it does")
    return is_good and not left


def cancel(run_folders: Sequence[Path], *, say: Say) -> bool:
    """End all jobs of runs, also those that follow meanwhile; return whether all are over. Raise ConfigError if one is
    a run without Slurm, CclmError if Slurm does not answer, or refuses."""
    runs = {run.run_folder: run for run in look_at_answered(run_folders)}
    local = next((run for run in runs.values() if run.is_local), None)
    if local is not None:
        raise ConfigError(
            where=str(local.run_folder), expected="a run with a job", got=f"one without Slurm ({local.state})",
            do="`stop` lets it save; Ctrl-C in its terminal ends it.",
        )  # fmt: skip
    told: set[tuple[Path, str]] = set()
    jobs, began = live_jobs(*runs), time.monotonic()
    while any(jobs.values()) and time.monotonic() - began < CANCEL_S:
        states: dict[tuple[Path, str], set[str]] = {}
        for path, found in jobs.items():
            for job in found:  # an array is cancelled as a whole, but of a sweep only the point
                name = job.base if runs[path].kind == "array" else job.job
                states.setdefault((path, name), set()).add(str(job))
        new = [item for item in states if item not in told]
        for path, name in new:
            if runs[path].kind != "array":
                add_event(path, Event(event="stop", job=name, reason="cancel"))
        _scancel(*dict.fromkeys(name for _, name in new))
        for path, name in new:
            say(path, f"job {name} cancelled (it was {', '.join(sorted(states[path, name]))})")
        told.update(new)
        time.sleep(POLL_S)
        jobs = live_jobs(*runs)
    for run in look_at_answered(list(runs)):
        path = run.run_folder
        is_told = any(path == item for item, _ in told)
        if is_told or len(runs) == 1:
            state = ", ".join(str(job) for job in jobs[path]) or run.last_word or run.phase
            say(path, f"{'' if is_told else 'no job of it waits or runs; '}{state}; {goes_on_from(run)}")
    return not any(jobs.values())


def goes_on_from(run: RunNow) -> str:
    """Say from where the run would go on, and how."""
    again = f"python -m launch resume {run.run_folder}"
    if run.phase == "done":
        return "it is done"
    if run.kind == "array":
        return f"{again} runs what is not done"
    if run.kind == "command":
        return f"{again} begins it anew"
    step = newest_step(run.run_folder)
    again = "the same command again" if run.kind == "local" else again
    return f"{again} goes on from step {step}" if step else f"there is no checkpoint: {again} begins anew"
