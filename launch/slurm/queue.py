"""What Slurm knows at this moment about many jobs: one squeue call for all of them, sacct for those that squeue forgot.

job ids ──> squeue ──(forgotten)──> sacct, where the site keeps accounts ──> JobsNow
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from cclm.errors import CclmError
from launch.slurm.client import ask_slurm, is_over

FORMAT = "%i|%T|%N|%S|%o|%r"
"""Id, state, nodes, start, script, reason; the reason last, because its words are Slurm's."""
ACCOUNT_FORMAT = "JobID,State,NodeList,Start"
NO_VALUE = frozenset({"N/A", "(null)", "None", "Unknown", "None assigned", ""})


@dataclass(frozen=True, kw_only=True)
class JobNow:
    """One job, or one element of an array."""

    job: str
    """Slurm's id; ARRAY_ELEMENT for an element."""
    state: str
    """Slurm's word: "PENDING", "RUNNING", "COMPLETED", …"""
    reason: str = ""
    """Why it waits, in Slurm's words; "" unless it does."""
    nodes: str = ""
    """In Slurm's short form; "" while it waits."""
    start: str = ""
    """When it started, or is expected to; "" if nobody knows."""
    script: str = ""
    """Path of the batch script; "" where only the accounts know the job."""

    @property
    def base(self) -> str:
        """The id without the element."""
        return self.job.partition("_")[0]

    @property
    def element(self) -> int | None:
        """Number of the element; None: no array."""
        number = self.job.partition("_")[2]
        return int(number) if number else None

    @property
    def is_over(self) -> bool:
        """Whether it will not run again by itself."""
        return is_over(self.state)

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

    def of(self, job: str) -> list[JobNow]:
        """What is known of a job or an element: one entry, one per element of an array, or nothing."""
        return self._by_name.get(job, [])

    @cached_property
    def _by_name(self) -> dict[str, list[JobNow]]:
        """Jobs by their id, elements also by their array's: a table of a thousand runs asks thousands of times."""
        found: dict[str, list[JobNow]] = {}
        for job in self.jobs:
            for name in {job.base, job.job}:
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
        accounted = ask_accounts(forgotten) if forgotten else ()
    except CclmError as error:
        return JobsNow(silence=str(error).rstrip("."))
    if accounted is None:
        return JobsNow(jobs=tuple(known), accounts="no accounting")
    return JobsNow(jobs=(*known, *accounted), accounts="sacct" if forgotten else "not asked")


def ask_queue(*which: str) -> list[JobNow]:
    """Jobs that the controller still knows. `which`: options of squeue that choose them.

    Raises:
        CclmError: there is no Slurm here, or it does not answer.
    """
    answer = ask_slurm(["squeue", "--noheader", "--states=all", "--array", f"--format={FORMAT}", *which])
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
        raise CclmError(
            where="squeue", expected="the state of jobs", got=" ".join(answer.stderr.split()) or "no words",
            do="The controller may be down: try again, and ask `scontrol ping`.",
        )  # fmt: skip
    return parse_queue(answer.stdout)


def parse_queue(text: str) -> list[JobNow]:
    """Read squeue's lines in our FORMAT."""
    found = []
    for line in text.splitlines():
        job, state, nodes, start, script, reason = line.strip().split("|", 5)
        waits = state == "PENDING" and reason not in NO_VALUE
        found.append(
            JobNow(
                job=job,
                state=state,
                reason=reason if waits else "",
                nodes=_value(nodes),
                start=_value(start),
                script=_value(script),
            )
        )
    return found


def ask_accounts(jobs: Sequence[str]) -> tuple[JobNow, ...] | None:
    """What the accounts say of jobs that the controller has forgotten; None: the site keeps none."""
    if shutil.which("sacct") is None:
        return None
    options = ["--noheader", "--parsable2", "--allocations", f"--format={ACCOUNT_FORMAT}", f"--jobs={','.join(jobs)}"]
    answer = ask_slurm(["sacct", *options])
    return parse_accounts(answer.stdout) if answer.returncode == 0 else None


def parse_accounts(text: str) -> tuple[JobNow, ...]:
    """Read sacct's lines; "CANCELLED by 1000" is CANCELLED."""
    rows = [line.split("|") for line in text.splitlines()]
    return tuple(
        JobNow(job=job, state=state.split()[0], nodes=_value(nodes), start=_value(start))
        for job, state, nodes, start in rows
        if "[" not in job  # elements that were cancelled before they began have no id of their own
    )


def details_of(job: str) -> dict[str, str]:
    """What `scontrol show job` says of one job, by its own names; empty if it does not know the job (any more)."""
    answer = ask_slurm(["scontrol", "--oneliner", "show", "job", job])
    return parse_details(answer.stdout) if answer.returncode == 0 else {}


def parse_details(text: str) -> dict[str, str]:
    """Read the first line of `KEY=VALUE KEY=VALUE …`; values that are only an absence are left out."""
    lines = text.splitlines()
    pairs = (word.partition("=") for word in (lines[0].split() if lines else []))
    return {key: value for key, equals, value in pairs if equals and value not in NO_VALUE}


def _value(text: str) -> str:
    return "" if text in NO_VALUE else text
