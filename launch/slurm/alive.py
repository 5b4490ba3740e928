"""Which jobs carry a run, or the points of a sweep."""

from __future__ import annotations

from pathlib import Path

from cclm.errors import CclmError
from launch.slurm.client import is_over, job_state
from launch.slurm.history import last_job, read_history
from launch.slurm.jobs_now import ask_jobs
from launch.sweep import is_sweep, point_folder, read_sweep


def jobs_alive(run_folder: Path) -> list[str]:
    """Jobs of a run that wait or run; of a sweep, those of its points.

    Raises:
        CclmError: Slurm does not answer.
    """
    if is_sweep(run_folder):
        return list(points_alive(run_folder, len(read_sweep(run_folder).points)).values())
    job = last_job(read_history(run_folder))
    return [] if job is None or is_over(job_state(job)) else [job]


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
