"""Slurm's own commands, each with a time limit: a scheduler that does not answer must not hang its users."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from cclm.errors import CclmError

ANSWER_S = 30.0


def ask_slurm(command: Sequence[str], *, timeout_s: float = ANSWER_S) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands outside any job's variables; the caller looks at the code. Raise CclmError if it is
    not installed, or does not answer in time."""
    if shutil.which(command[0]) is None:
        raise CclmError(
            where="Slurm", expected=f"the command {command[0]}", got="none on the PATH",
            do="Run this on a login node of the cluster, or use `python -m launch run` on one machine.",
        )  # fmt: skip
    try:
        return subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
            env=without_job(os.environ), stdin=subprocess.DEVNULL,
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
    command: Sequence[str], *, expected: str, do: str, timeout_s: float = ANSWER_S, tolerated: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands. Raise CclmError with its words if it refuses, unless they hold `tolerated`."""
    answer = ask_slurm(command, timeout_s=timeout_s)
    if answer.returncode != 0 and (tolerated is None or tolerated not in answer.stderr):
        got = " ".join(answer.stderr.replace("sbatch: ", "").split()) or "no words"
        where = " ".join(itertools.takewhile(lambda word: word[0] != "-", command[:3]))
        raise CclmError(where=where, expected=expected, got=got, do=do)
    return answer


def would_take(script: str) -> str:
    """Ask whether the cluster would take this script; return when and where it would start."""
    advice = "Ask for less, or for another partition: `sinfo` lists them; nothing was submitted."
    command = ["sbatch", "--test-only", script]
    answer = told_by_slurm(command, expected="a job that this cluster can run", do=advice)
    return " ".join(line.removeprefix("sbatch: ") for line in answer.stderr.splitlines()).strip()


def submit_script(script: str, *options: str) -> str:
    """Submit; return the job's id."""
    command = ["sbatch", "--parsable", *options, script]
    return told_by_slurm(command, expected="a job id", do="Nothing was submitted.").stdout.strip().partition(";")[0]
