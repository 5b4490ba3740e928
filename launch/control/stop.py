"""End a run: let it save and rest (`stop`), or take its jobs away (`cancel`).

The wish is also noted in the history, so that it holds whatever the job does meanwhile: a life that is about to begin
reads it there (`launch/slurm/life.py`), and a job that crashes while it was asked does not come back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cclm.errors import CclmError, ConfigError
from cclm.run import stop as request
from launch.slurm.client import ask_slurm
from launch.slurm.history import Event, add_event, read_history
from launch.slurm.live_jobs import live_jobs, script_of
from launch.slurm.queue import JobNow, ask_queue
from launch.slurm.restart import newest_step
from launch.watch.status import NOT_SUBMITTED, RUNNING, UNKNOWN, RunNow, look_at, look_at_one

POLL_S = 0.3
ASK_S = 2.0
"""So often Slurm is asked while we wait."""
CANCEL_S = 90.0
"""Slurm lets a cancelled job live for KillWait (30 s by default) after TERM."""
REASON = "a person asked"

Say = Callable[[str], None]


def look_at_answered(run_folder: Path) -> RunNow:
    """Look at a run of which the state must be known.

    Raises:
        CclmError: Slurm does not tell.
    """
    run = look_at_one(run_folder)
    if run.state == UNKNOWN:
        raise CclmError(where=str(run_folder), expected="the state of its job", got=run.reason, do="Try again.")
    return run


def those_with_jobs(run_folders: Sequence[Path]) -> list[Path]:
    """Leave out runs that neither wait nor run, with two questions for all of them: of a large sweep most are done."""
    if not any(read_history(run) for run in run_folders):
        return list(run_folders)
    by_hand = {Path(job.script).resolve() for job in ask_queue("--me") if job.script and not job.is_over}
    runs, unreadable, _ = look_at(run_folders)
    idle = {run.run_folder for run in runs if not run.may_go_on and script_of(run.run_folder) not in by_hand}
    return [run for run in run_folders if run in unreadable or run not in idle]


def stop(run_folder: Path, *, say: Say) -> bool:
    """Let a run save and rest; returns whether there is something to wait for.

    Raises:
        ConfigError: a job that cannot save is running.
        CclmError: Slurm does not answer.
    """
    run = look_at_answered(run_folder)
    if run.progress.is_done:
        say(f"done at step {run.progress.step}: there is nothing to stop")
        return False
    if run.kind == "local" and run.state != NOT_SUBMITTED:
        return _stop_local(run, say)
    jobs = live_jobs(run_folder)
    if not jobs:
        say(f"no job of it waits or runs; {goes_on_from(run)}")
        return False
    if run.kind == "array":
        _scancel("--state=PENDING", *_bases(jobs))
        elements = look_at_answered(run_folder).elements
        say(f"the elements that waited are cancelled ({elements}); those that run go on to their end")
        return False
    return _stop_job(run, jobs, say)


def _stop_local(run: RunNow, say: Say) -> bool:
    if run.state != RUNNING:
        say(f"it does not run ({run.verdict}); {goes_on_from(run)}")
        return False
    request.ask_to_stop(run.run_folder, REASON, request.StopKind.USER)
    say(f"asked to save and end after its present step, through {run.run_folder / request.STOP_NAME}")
    return True


def _stop_job(run: RunNow, jobs: Sequence[JobNow], say: Say) -> bool:
    running = [job for job in jobs if job.state != "PENDING"]
    if running and run.kind == "command":
        raise ConfigError(
            where=str(run.run_folder), expected="a run that trains, and can save", got="a command that is running",
            do="Wait for it, or end it without saving: python -m launch cancel.",
        )  # fmt: skip
    for job in jobs:
        add_event(run.run_folder, Event(event="rest", job=job.job, why="stop"))
    waiting = [job for job in jobs if job.state == "PENDING"]
    # One that has begun to run since we looked is left alone. Not so an element: with --state scancel takes the
    # whole array that waits, so a point of a sweep goes by its name alone; had it just begun, it would end anyway.
    _scancel("--state=PENDING", *(job.job for job in waiting if job.element is None))
    _scancel(*(job.job for job in waiting if job.element is not None))
    # A job that waited a moment ago may run by now; it finds the wish in the history, or in the file.
    remaining = live_jobs(run.run_folder)
    if not remaining:
        say(f"job {jobs[-1].job} was waiting and is cancelled: nothing to save; {goes_on_from(run)}")
        return False
    request.ask_to_stop(run.run_folder, REASON, request.StopKind.USER)
    if run.ranks:
        # Nobody is signalled before a rank has spoken in this life: USR1 would kill what checks the nodes.
        ask_slurm(["scancel", "--signal=USR1", *(job.job for job in remaining)])
    say(f"job {remaining[-1].job} ({run.phase}) is asked to save and to rest after its present step")
    return True


def _bases(jobs: Sequence[JobNow]) -> list[str]:
    return sorted({job.base for job in jobs})


def _scancel(*words: str) -> None:
    """Raises CclmError if Slurm refuses."""
    if all(word.startswith("--") for word in words):
        return  # no job is meant
    answer = ask_slurm(["scancel", *words])
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
        raise CclmError(
            where="scancel", expected=f"an end of job {', '.join(words)}", got=answer.stderr.strip() or "no words",
            do="Only the owner of a job may end it.",
        )  # fmt: skip


def wait_for_rest(run_folder: Path, wait_s: float, *, say: Say) -> bool:
    """Wait until a run has saved (or is done) and its job is over; returns whether it is so in time."""
    began, next_look = time.monotonic(), 0.0
    while time.monotonic() - began < wait_s:
        if time.monotonic() >= next_look:
            run = look_at_answered(run_folder)
            if not run.may_go_on:
                say(f"{run.verdict or run.phase}; {goes_on_from(run)}")
                return run.phase in ("done", "stopped")
            next_look = time.monotonic() + ASK_S
        time.sleep(POLL_S)
    say(f"not at rest after {wait_s:g} s: `python -m launch status {run_folder}` shows what it does")
    return False


def cancel(run_folder: Path, *, say: Say) -> bool:
    """End all jobs of a run, also one that follows meanwhile; returns whether all are over.

    Raises:
        ConfigError: it is a run without Slurm.
        CclmError: Slurm does not answer, or refuses.
    """
    run = look_at_answered(run_folder)
    if run.kind == "local" and run.state != NOT_SUBMITTED:
        raise ConfigError(
            where=str(run_folder), expected="a run with a job", got=f"one without Slurm ({run.state})",
            do="`stop` lets it save; Ctrl-C in its terminal ends it.",
        )  # fmt: skip
    told: set[str] = set()
    jobs, began = live_jobs(run_folder), time.monotonic()
    while jobs and time.monotonic() - began < CANCEL_S:
        new = [job for job in jobs if _name(job, run) not in told]
        for name in dict.fromkeys(_name(job, run) for job in new):
            states = ", ".join(sorted({str(job) for job in new if _name(job, run) == name}))
            if run.kind != "array":
                add_event(run_folder, Event(event="rest", job=name, why="cancel"))
            _scancel(name)
            say(f"job {name} cancelled (it was {states})")
            told.add(name)
        time.sleep(POLL_S)
        jobs = live_jobs(run_folder)
    if not told:
        say("no job of it waits or runs")
    run = look_at_answered(run_folder)
    say(f"{', '.join(str(job) for job in jobs) or run.verdict or run.phase}; {goes_on_from(run)}")
    return not jobs


def _name(job: JobNow, run: RunNow) -> str:
    """What is cancelled: an array as a whole, but of a sweep only the point."""
    return job.base if run.kind == "array" else job.job


def goes_on_from(run: RunNow) -> str:
    """From where the run would go on, and how."""
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
