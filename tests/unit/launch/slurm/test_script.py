"""The batch scripts: as text, and in the eyes of bash and shellcheck. The containers they name were never run here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.plan.request import Profile
from launch.plan.slurm_job import plan_job
from launch.slurm.submit import render
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
