"""A stand-in for ssh, and jobs through it: real processes of `python -m launch ssh` on this machine."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.unit.launch.ssh import stand_in as stand_in_program

ROOT = Path(__file__).resolve().parents[4]
HEADER = (
    "import json, os, signal, subprocess, sys, time\n"
    "from pathlib import Path\n"
    "rank, folder = int(os.environ['RANK']), Path(sys.argv[1])\n"
)
Starter = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """The program to name in the place of ssh."""
    (tmp_path / "ssh_calls").mkdir()
    words = [sys.executable, "-S", stand_in_program.__file__, str(tmp_path / "ssh_calls")]
    program = tmp_path / "ssh"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def start(tmp_path: Path, stand_in: Path) -> Iterator[Starter]:
    """Start `python -m launch ssh` for a piece of Python; it begins with `rank` and `folder` defined."""
    started: list[subprocess.Popen[str]] = []

    def launch(code: str, *options: str, hosts: str = "one,two") -> subprocess.Popen[str]:
        (tmp_path / "program.py").write_text(HEADER + code)
        command = [sys.executable, "-m", "launch", "ssh", "--hosts", hosts, "--ssh-program", str(stand_in)]
        command += ["--interface", "lo", "--run-folder", str(tmp_path / "run"), "--grace-s", "5", *options]
        command += ["--", "python", "-S", str(tmp_path / "program.py"), str(tmp_path)]
        # A background shell starts its programs deaf to an interrupt, and they hand that on.
        hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def call(tmp_path: Path, host: str) -> tuple[int, list[str]]:
    """Process number and arguments of the stand-in for the connection to a host."""
    note = json.loads((tmp_path / "ssh_calls" / f"{host}.json").read_text())
    return note["pid"], note["words"]
