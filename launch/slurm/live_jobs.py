"""Which jobs carry a run, or the points of a sweep."""

from __future__ import annotations

from pathlib import Path

from cclm.errors import CclmError
from launch.plan.slurm_job import SCRIPT_NAME, SLURM_FOLDER
from launch.plan.sweep import is_sweep, point_folder, read_sweep
from launch.slurm.history import jobs_of, last_job, read_history
from launch.slurm.queue import JobNow, ask_jobs, ask_queue


def script_of(run_folder: Path) -> Path:
    """Path of a run's batch script, by which a job that was submitted by hand is known."""
    return (run_folder / SLURM_FOLDER / SCRIPT_NAME).resolve()


def live_jobs(run_folder: Path) -> list[JobNow]:
    """Jobs of the run that wait or run: those of its history, and those of the caller that run its script. Of an array
    that is each element; a sweep's point has one element.

    Raises:
        CclmError: there is no Slurm here, or it does not answer.
    """
    script = script_of(run_folder)
    known = jobs_of(read_history(run_folder))
    mine = ask_queue("--me")
    told = {job.base for job in mine}
    others = [job for job in known if job.partition("_")[0] not in told]  # somebody else's, or forgotten
    asked = ask_queue(f"--jobs={','.join(others)}") if others else []
    ours = [job for job in mine if job.script and Path(job.script).resolve() == script]
    ours += [job for job in (*mine, *asked) if {job.job, job.base} & set(known)]
    return [job for job in {job.job: job for job in ours}.values() if not job.is_over]


def jobs_alive(run_folder: Path) -> list[str]:
    """Jobs of a run that wait or run, an array as a whole; of a sweep, those of its points.

    Raises:
        CclmError: Slurm does not answer.
    """
    if is_sweep(run_folder):
        return list(points_alive(run_folder, len(read_sweep(run_folder).points)).values())
    known = jobs_of(read_history(run_folder))
    return sorted({job.base if job.base in known else job.job for job in live_jobs(run_folder)})


def points_alive(folder: Path, count: int) -> dict[int, str]:
    """Points of a sweep whose job waits or runs, with that job; one question for all of them.

    Raises:
        CclmError: Slurm does not answer.
    """
    last = ((number, last_job(read_history(point_folder(folder, number)))) for number in range(count))
    jobs = {number: job for number, job in last if job is not None}
    now = ask_jobs(jobs.values())
    if now.silence:
        raise CclmError(
            where=str(folder), expected="the states of its points' jobs", got=now.silence, do="Try again later."
        )
    return {number: job for number, job in jobs.items() if any(not found.is_over for found in now.of(job))}
