"""Slurm's own commands, each with a time limit: a scheduler that does not answer must not hang its users; and what they
know at this moment about jobs: one squeue call for all of them, sacct for those that squeue forgot.

job ids ──> squeue ──(forgotten)──> sacct, where the site keeps accounts ──> JobsNow
run folders ──> squeue (their history's jobs, and the caller's that run their script) ──> jobs of each
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cclm.errors import CclmError
from launch.plan.slurm_job import PLAN_NAME, SCRIPT_NAME, SLURM_FOLDER
from launch.plan.sweep import is_sweep, point_folder, read_sweep
from launch.slurm.history import jobs_of, read_history

ANSWER_S = 30.0
FORMAT = "%i|%T|%N|%o|%r"
"""Id, state, nodes, script, reason; the reason last, because its words are Slurm's."""
NO_VALUE = frozenset({"N/A", "(null)", "None", "Unknown", "None assigned", ""})
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"}
    | {"NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT", "REVOKED"}
)
"""States in which a job will not run again by itself."""


def ask_slurm(
    command: Sequence[str], *, timeout_s: float = ANSWER_S, reads: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands outside any job's variables; the caller looks at the code. `reads`: its standard
    input. Raise CclmError if it is not installed, or does not answer in time."""
    if shutil.which(command[0]) is None:
        raise CclmError(
            where="Slurm", expected=f"the command {command[0]}", got="none on the PATH",
            do="Run this on a login node of the cluster, or use `python -m launch run` on one machine.",
        )  # fmt: skip
    try:
        return subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
            env=without_job(os.environ), input=reads,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise CclmError(
            where="Slurm", expected=f"an answer of {command[0]} in {timeout_s:g} s", got="none",
            do="The controller is busy or down: try again, and ask `scontrol ping`.",
        ) from error  # fmt: skip


def without_job(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a surrounding job set: sbatch would take it for options."""
    kept = ("SLURM_CONF",)
    strange = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
    return {name: value for name, value in environment.items() if name in kept or not name.startswith(strange)}


def told_by_slurm(
    command: Sequence[str],
    *,
    expected: str,
    do: str,
    timeout_s: float = ANSWER_S,
    tolerated: str | None = None,
    reads: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands. Raise CclmError with its words if it refuses, unless they hold `tolerated`."""
    answer = ask_slurm(command, timeout_s=timeout_s, reads=reads)
    if answer.returncode != 0 and (tolerated is None or tolerated not in answer.stderr):
        got = " ".join(answer.stderr.replace("sbatch: ", "").split()) or "no words"
        where = " ".join(itertools.takewhile(lambda word: word[0] != "-", command[:3]))
        raise CclmError(where=where, expected=expected, got=got, do=do)
    return answer


def would_take(script: str) -> str:
    """Ask whether the cluster would take a script with this text; return when and where it would start."""
    advice = "Ask for less, or for another partition: `sinfo` lists them; nothing was submitted."
    answer = told_by_slurm(
        ["sbatch", "--test-only"], expected="a job that this cluster can run", do=advice, reads=script
    )
    return " ".join(line.removeprefix("sbatch: ") for line in answer.stderr.splitlines()).strip()


def submit_script(script: str, *options: str) -> str:
    """Submit; return the job's id."""
    command = ["sbatch", "--parsable", *options, script]
    return told_by_slurm(command, expected="a job id", do="Nothing was submitted.").stdout.strip().partition(";")[0]


@dataclass(frozen=True, kw_only=True)
class JobNow:
    """One job, or one task of an array."""

    job: str
    """Slurm's id; ARRAY_TASK for a task of an array."""
    state: str
    """Slurm's word: "PENDING", "RUNNING", "COMPLETED", …"""
    reason: str = ""
    """Why it waits, in Slurm's words; "" unless it does."""
    nodes: str = ""
    """In Slurm's short form; "" while it waits."""
    script: str = ""
    """Path of the batch script; "" where only the accounts know the job."""

    @property
    def base(self) -> str:
        """The id without the array's task."""
        return self.job.partition("_")[0]

    @property
    def array_task(self) -> int | None:
        """Number of the array's task; None: no array."""
        number = self.job.partition("_")[2]
        return int(number) if number else None

    @property
    def is_over(self) -> bool:
        """Whether it will not run again by itself."""
        return self.state in ENDED

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else self.state


@dataclass(frozen=True, kw_only=True)
class JobsNow:
    """What Slurm answered."""

    jobs: tuple[JobNow, ...] = ()
    silence: str = ""
    """Why Slurm told nothing: it is not installed, or does not answer; "" if it did."""
    accounts: str = "not asked"
    """"sacct", "no accounting", or "not asked" because squeue knew every job."""

    def of(self, name: str) -> list[JobNow]:
        """What is known of a job, an array's task or a script: one entry, one per task of an array, or nothing."""
        return self._by_name.get(name, [])

    @cached_property
    def _by_name(self) -> dict[str, list[JobNow]]:
        """A table of a thousand runs asks thousands of times."""
        found: dict[str, list[JobNow]] = {}
        for job in self.jobs:
            for name in {job.base, job.job, str(Path(job.script).resolve()) if job.script else job.job}:
                found.setdefault(name, []).append(job)
        return found


def ask_jobs(jobs: Iterable[str]) -> JobsNow:
    """Ask about these jobs. A Slurm that does not answer is told in `silence`: the run folders still speak."""
    wanted = sorted({job.partition("_")[0] for job in jobs}, key=lambda job: (len(job), job))
    if not wanted:
        return JobsNow()
    try:
        known = ask_queue(f"--jobs={','.join(wanted)}")
        told = {found.base for found in known}
        forgotten = [job for job in wanted if job not in told]
        accounted = _ask_accounts(forgotten) if forgotten else []
    except CclmError as error:
        return JobsNow(silence=str(error).rstrip("."))
    if accounted is None:
        return JobsNow(jobs=tuple(known), accounts="no accounting")
    return JobsNow(jobs=(*known, *accounted), accounts="sacct" if forgotten else "not asked")


def ask_queue(*which: str) -> list[JobNow]:
    """Jobs that the controller still knows. `which`: options of squeue that choose them. Raise CclmError if there is
    no Slurm here, or it does not answer."""
    command = ["squeue", "--noheader", "--states=all", "--array", f"--format={FORMAT}", *which]
    advice = "The controller may be down: try again, and ask `scontrol ping`."
    answer = told_by_slurm(command, expected="the state of jobs", do=advice, tolerated="Invalid job id")
    rows = (map(_value, line.strip().split("|", 4)) for line in answer.stdout.splitlines())
    return [
        JobNow(job=job, state=state, reason=reason * (state == "PENDING"), nodes=nodes, script=script)
        for job, state, nodes, script, reason in rows
    ]


def _ask_accounts(jobs: Sequence[str]) -> list[JobNow] | None:
    """What the accounts say of jobs that the controller has forgotten; None: the site keeps none."""
    if shutil.which("sacct") is None:
        return None
    form = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State,NodeList")
    answer = ask_slurm(["sacct", *form, f"--jobs={','.join(jobs)}"])
    if answer.returncode != 0:
        return None
    return [
        JobNow(job=job, state=state.split()[0], nodes=_value(nodes))  # "CANCELLED by 1000" is CANCELLED
        for job, state, nodes in (line.split("|") for line in answer.stdout.splitlines())
        if "[" not in job  # tasks that were cancelled before they began have no id of their own
    ]


def details_of(job: str) -> dict[str, str]:
    """What `scontrol show job` says of one job, by its own names, without values that are only an absence; empty if it
    does not know the job (any more)."""
    answer = ask_slurm(["scontrol", "--oneliner", "show", "job", job])
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    pairs = (word.partition("=") for word in (lines[0].split() if lines else []))
    return {key: value for key, equals, value in pairs if equals and value not in NO_VALUE}


def _value(text: str) -> str:
    return "" if text in NO_VALUE else text


def live_jobs(*run_folders: Path) -> dict[Path, list[JobNow]]:
    """Return the jobs of runs that wait or run: those of their histories, and those of the caller that run their
    scripts; with two questions to Slurm at most. Of an array that is each task; a sweep's point is one task. Raise
    CclmError if there is no Slurm here, or it does not answer."""
    known = {run: jobs_of(read_history(run)) for run in run_folders}
    if not any(jobs or (run / SLURM_FOLDER / PLAN_NAME).exists() for run, jobs in known.items()):
        return {run: [] for run in run_folders}
    mine = ask_queue("--me")
    told = {job.base for job in mine}
    # What is not the caller's is somebody else's, or forgotten.
    others = sorted({job for jobs in known.values() for job in jobs if job.partition("_")[0] not in told})
    everything = [*mine, *(ask_queue(f"--jobs={','.join(others)}") if others else ())]
    live = JobsNow(jobs=tuple(job for job in everything if not job.is_over))
    found = {}
    for run, jobs in known.items():
        script = str((run / SLURM_FOLDER / SCRIPT_NAME).resolve())  # by it a job submitted by hand is known
        found[run] = list({job.job: job for name in (script, *jobs) for job in live.of(name)}.values())
    return found


def jobs_alive(run_folder: Path) -> list[str]:
    """Return the jobs of a run that wait or run, an array as a whole; of a sweep, those of its points. Raise CclmError
    if Slurm does not answer."""
    if is_sweep(run_folder):
        return list(points_alive(run_folder, len(read_sweep(run_folder).points)).values())
    known = jobs_of(read_history(run_folder))
    return sorted({job.base if job.base in known else job.job for job in live_jobs(run_folder)[run_folder]})


def points_alive(folder: Path, count: int) -> dict[int, str]:
    """Return the points of a sweep whose job waits or runs, with that job. Raise CclmError if Slurm does not answer."""
    numbers = {point_folder(folder, number): number for number in range(count)}
    return {numbers[run]: jobs[-1].job for run, jobs in live_jobs(*numbers).items() if jobs}
