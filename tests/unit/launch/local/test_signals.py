"""Signals to the launcher itself, and its violent death: `python -m launch` as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.launch.local.test_run import CHILD, is_running, wait_for

ROOT = Path(__file__).resolve().parents[4]
READY = "(folder / f'ready_{rank}').write_text(str(os.getpid()))\n"
HEADER = (
    "import os, signal, subprocess, sys, time\n"
    "from pathlib import Path\n"
    "rank, folder = int(os.environ['RANK']), Path(sys.argv[1])\n"
)
SLEEP = "for _ in range(600): time.sleep(0.1)\n"
Starter = Callable[[str], "subprocess.Popen[str]"]


def is_written(path: Path) -> bool:
    """Whether a rank has written a file: it exists a moment before it has its content."""
    return path.exists() and path.stat().st_size > 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Start a launcher of two ranks; returns when both have said that they are ready."""
    started: list[subprocess.Popen[str]] = []

    def launch(code: str) -> subprocess.Popen[str]:
        (tmp_path / "program.py").write_text(HEADER + code)
        command = [sys.executable, "-m", "launch", "run", "--ranks", "2", "--run-folder", str(tmp_path / "run")]
        command += ["--grace-s", "5", "--", "python", "-S", str(tmp_path / "program.py"), str(tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert wait_for(lambda: all(is_written(tmp_path / f"ready_{rank}") for rank in (0, 1)))
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_every_rank_which_may_end_well(start: Starter, tmp_path: Path, number: signal.Signals) -> None:
    process = start(
        "def save(number, frame):\n"
        "    (folder / f'saved_{rank}').write_text(str(number))\n"
        "    sys.exit(0)\n"
        f"signal.signal({int(number)}, save)\n" + READY + SLEEP
    )
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert [int((tmp_path / f"saved_{rank}").read_text()) for rank in (0, 1)] == [number, number]


def test_ranks_that_were_asked_to_stop_have_not_failed(start: Starter) -> None:
    process = start("signal.signal(signal.SIGINT, lambda *_: sys.exit(130))\n" + READY + SLEEP)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "launch: stopped. First of 2 rank(s): rank " in errors and "exit code 130" in errors
    assert "failed" not in errors and "end of" not in errors


def test_a_second_request_to_stop_kills(start: Starter) -> None:
    process = start("signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + READY + SLEEP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGKILL
    assert "SIGINT passed on to 2 rank(s); once more kills them." in errors


def test_a_killed_launcher_leaves_no_orphan(start: Starter, tmp_path: Path) -> None:
    process = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + CHILD + READY + SLEEP)
    pids = [int((tmp_path / f"{kind}_{rank}").read_text()) for kind in ("ready", "child") for rank in (0, 1)]
    assert all(is_running(pid) for pid in pids)
    os.kill(process.pid, signal.SIGKILL)
    assert wait_for(lambda: not any(is_running(pid) for pid in pids))
