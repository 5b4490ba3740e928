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
case "$3" in begin) kill -USR1 "$(cat {folder}/pid)"; echo 0 ;; end) exit 75 ;; esac
"""


def test_a_job_that_is_preempted_while_it_begins_asks_its_ranks_to_save_and_comes_back(
    tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    """Slurm's signal would end a script that does not listen yet, and a job that failed is not queued again."""
    (tmp_path / "code").mkdir()
    (tmp_path / "python").write_text(ATTEMPT.format(folder=tmp_path))
    (tmp_path / "python").chmod(0o755)
    request = replace(REQUEST, run_folder=tmp_path, python=str(tmp_path / "python"), preflight="none")
    (tmp_path / "job.sh").write_text(render(plan_job(request, Profile())))
    for name in ("scontrol", "scancel", "srun"):
        fake_slurm.program(name, "")
    start = f'echo $$ > {tmp_path}/pid; PATH="$PATH:/usr/bin:/bin"; exec bash {tmp_path}/job.sh'
    environment = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    done = subprocess.run(["/bin/bash", "-c", start], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().split() == ["port", "begin", "ask", "end"]
    assert fake_slurm.calls("scontrol")[-1] == "requeue 7"
