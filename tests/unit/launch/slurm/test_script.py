"""The batch scripts: as text, and in the eyes of bash and shellcheck. The containers they name were never run here."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.plan.request import Profile
from launch.plan.slurm_job import plan_job
from launch.slurm.submit import render
from tests.unit.launch.slurm.fake_slurm import FakeSlurm
from tests.unit.launch.slurm.scripts import GOLDEN, REQUEST, SCRIPTS, SWEEP, script


@pytest.mark.parametrize("name", [*SCRIPTS, SWEEP])
def test_as_its_golden_file(name: str) -> None:
    assert script(name) == (GOLDEN / f"{name}.sh").read_text(), (
        "python -m tests.unit.launch.slurm.scripts writes it anew"
    )


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.sh")} == {*SCRIPTS, SWEEP}


def test_bash_and_shellcheck_find_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    files = [str(path) for path in sorted(GOLDEN.glob("*.sh"))]
    for command in ([str(shellcheck), "--severity=style", *files], *(["bash", "-n", file] for file in files)):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_directives_come_before_the_first_command() -> None:
    """Slurm stops reading them there, without a word."""
    lines = script("everything").splitlines()
    last = max(index for index, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[: last + 1])


def test_values_reach_the_ranks_unchanged() -> None:
    note = "two words, 'a quote', $HOME"
    exports = [
        line for line in render(plan_job(REQUEST, Profile(environment={"NOTE": note}))).splitlines() if "NOTE" in line
    ]
    told = subprocess.run(
        ["bash", "-c", f'{exports[0]}; printf %s "$NOTE"'], capture_output=True, text=True, check=True
    )
    assert told.stdout == note


ATTEMPT = """#!/bin/bash
echo "$3" >> {folder}/calls
[ "$3" != {when} ] || kill -{number} "$(cat {folder}/pid)"
case "$3" in begin) echo 0; exit {begins} ;; check) exit 1 ;; end) exit 75 ;; esac
"""


@pytest.mark.parametrize(
    ("number", "when", "begins", "calls", "code"),
    [
        ("USR1", "port", 0, ["port", "begin", "ask", "end"], 0),
        ("USR1", "begin", 0, ["port", "begin", "ask", "end"], 0),
        ("USR1", "port", 1, ["port", "begin"], 1),
        ("TERM", "port", 0, ["port"], -15),
        ("TERM", "srun", 0, ["port", "begin", "ask", "end"], 0),
    ],
    ids=["preempted early", "preempted in begin", "another job runs here", "cancelled early", "cancelled in preflight"],
)
def test_a_signal_while_a_job_begins(
    number: str, when: str, begins: int, calls: list[str], code: int, tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    """USR1 would end a script that does not listen yet, and a job that failed is not queued again; what is asked before
    `begin` is forgotten by it, and not this job's to ask where another one runs. Nodes of a job that is being ended
    do not answer, and are not bad."""
    (tmp_path / "code").mkdir()
    (tmp_path / "python").write_text(ATTEMPT.format(folder=tmp_path, number=number, when=when, begins=begins))
    (tmp_path / "python").chmod(0o755)
    preflight = "quick" if when == "srun" else "none"
    request = replace(REQUEST, run_folder=tmp_path, python=str(tmp_path / "python"), preflight=preflight)
    (tmp_path / "job.sh").write_text(render(plan_job(request, Profile())))
    for name in ("scontrol", "scancel"):
        fake_slurm.program(name, "")
    strike = f'kill -{number} "$(cat {tmp_path}/pid)"' if when == "srun" else ""
    fake_slurm.program("srun", f'case "$*" in *launch.slurm.preflight*) {strike} ;; esac')
    start = f'echo $$ > {tmp_path}/pid; PATH="$PATH:/usr/bin:/bin"; exec bash {tmp_path}/job.sh'
    environment = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1"}
    done = subprocess.run(
        ["/bin/bash", "-c", start], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "calls").read_text().split() == calls
    assert (fake_slurm.calls("scontrol")[-1] == "requeue 7") == ("end" in calls)
