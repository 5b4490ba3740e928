"""Which jobs carry a run, or the points of a sweep."""

from __future__ import annotations

from pathlib import Path

from launch.slurm.client import is_over, job_state
from launch.slurm.history import last_job, read_history
from launch.sweep import is_sweep, point_folder, read_sweep


def jobs_alive(run_folder: Path) -> list[str]:
    """Jobs of a run that wait or run; of a sweep, those of its points.

    Raises:
        CclmError: Slurm does not answer.
    """
    folders = [run_folder]
    if is_sweep(run_folder):
        folders = [point_folder(run_folder, number) for number in range(len(read_sweep(run_folder).points))]
    jobs = (last_job(read_history(folder)) for folder in folders)
    return [job for job in jobs if job is not None and not is_over(job_state(job))]
