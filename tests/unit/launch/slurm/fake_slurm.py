"""Slurm's commands played by small scripts, which note how they were called."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

NEEDED = ("cat", "sed", "sleep")
"""What the scripts use."""


class FakeSlurm:
    """A folder of programs, first on the PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        for name in NEEDED:
            (self.folder / name).symlink_to(shutil.which(name) or name)
        monkeypatch.setenv("PATH", str(self.folder))  # and nothing else: this machine may have a Slurm

    def program(self, name: str, text: str) -> None:
        """Let a command do this; `$*` are its words."""
        (self.folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {self.folder}/calls\n{text}\n')
        (self.folder / name).chmod(0o755)

    def queue(self, *jobs: Sequence[str]) -> None:
        """Let squeue tell of jobs: id, state, nodes, script, reason."""
        lines = "".join("|".join([*job, *("N/A",) * (5 - len(job))]) + "\n" for job in jobs)
        (self.folder / "jobs").write_text(lines)
        self.program("squeue", f"cat {self.folder}/jobs")

    def obeys(self) -> None:
        """Let scancel end jobs: those that wait if only these are meant, else all; signals change nothing."""
        jobs = f"sed -i -E {{}} {self.folder}/jobs"
        waiting, all_jobs = jobs.format("s/PENDING/CANCELLED/"), jobs.format("'s/PENDING|RUNNING/CANCELLED/'")
        text = f'case "$*" in *--signal*) ;; *--state=PENDING*) {waiting} ;; *) {all_jobs} ;; esac'
        self.program("scancel", text)

    def calls(self, name: str) -> list[str]:
        """How a command was called."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]
