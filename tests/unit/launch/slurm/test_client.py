"""Slurm's commands played by small scripts: what we make of their answers. tests/slurm asks a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cclm.errors import CclmError
from launch.slurm import jobs


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def test_no_slurm_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CclmError, match="expected the command sbatch, got none on the PATH"):
        jobs.would_take("job.sh")


def test_a_controller_that_does_not_answer(bin_folder: Path) -> None:
    program(bin_folder, "squeue", "exec sleep 60")
    with pytest.raises(CclmError, match="expected an answer of squeue"):
        jobs.ask_slurm(["squeue"], timeout_s=0.1)


def test_refusals_are_told_in_slurms_words(bin_folder: Path) -> None:
    program(
        bin_folder, "sbatch", "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1"
    )
    for ask in (jobs.would_take, jobs.submit_script):
        with pytest.raises(CclmError, match="Requested node configuration is not available"):
            ask("job.sh")


def test_a_job_id_with_its_cluster(bin_folder: Path) -> None:
    program(bin_folder, "sbatch", "echo '1234;alpha'")
    assert jobs.submit_script("job.sh") == "1234"


def test_a_surrounding_job_is_not_seen() -> None:
    kept = jobs.without_job({"SLURM_JOB_ID": "1", "SLURM_CONF": "c", "SBATCH_X": "", "HOME": "h"})
    assert kept == {"SLURM_CONF": "c", "HOME": "h"}
