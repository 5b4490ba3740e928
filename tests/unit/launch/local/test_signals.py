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

from cclm.run.signals import AGAIN_S
from tests.unit.launch.local.test_run import CHILD, is_running, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[4]
READY = "(folder / f'ready_{rank}').write_text(str(os.getpid()))\n"
TOGETHER = "while not all((folder / f'ready_{r}').exists() for r in (0, 1)): time.sleep(0.01)\n"
HEADER = (
    "import os, signal, subprocess, sys, time\n"
    "from pathlib import Path\n"
    "rank, folder = int(os.environ['RANK']), Path(sys.argv[1])\n"
)
SLEEP = "for _ in range(600): time.sleep(0.1)\n"
PATIENCE_S = 120.0
AT_ONCE = """
import sys
from launch.__main__ import main
from launch.local import run
run.AGAIN_S = 1e9
sys.exit(main(sys.argv[1:]))
"""
"""Every further request is the first one, delivered again, however late a slow machine delivers it."""
Starter = Callable[..., "subprocess.Popen[str]"]


def is_written(path: Path) -> bool:
    """Whether a rank has written a file: it exists a moment before it has its content."""
    return path.exists() and path.stat().st_size > 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Start a launcher of two ranks from a shell; returns when both have said that they are ready."""
    started: list[subprocess.Popen[str]] = []

    def launch(code: str, shell: str = "true", python: tuple[str, ...] = ("-m", "launch")) -> subprocess.Popen[str]:
        (tmp_path / "program.py").write_text(HEADER + code, encoding="utf-8")
        command = [sys.executable, *python, "run", "--ranks", "2", "--run-folder", str(tmp_path / "run")]
        command += ["--grace-s", "60", "--", "python", "-S", str(tmp_path / "program.py"), str(tmp_path)]
        words = ["bash", "-c", f'{shell}; exec "$@"', "bash", *command]
        process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert wait_for(lambda: all(is_written(tmp_path / f"ready_{rank}") for rank in (0, 1)))
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "received"),
    [
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM),
        (signal.SIGUSR1, signal.SIGUSR1),
    ],
)
def test_a_signal_reaches_every_rank_which_may_end_well(
    start: Starter, tmp_path: Path, number: signal.Signals, received: signal.Signals
) -> None:
    """Whatever asks to stop arrives as TERM: Ctrl-C would print a traceback while a rank imports."""
    process = start(
        "def save(number, frame):\n"
        "    (folder / f'saved_{rank}').write_text(str(number))\n"
        "    sys.exit(0)\n"
        f"signal.signal({int(received)}, save)\n" + READY + SLEEP
    )
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert [int((tmp_path / f"saved_{rank}").read_text()) for rank in (0, 1)] == [received, received]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ranks_that_had_nothing_to_save_have_not_failed(start: Starter, number: signal.Signals) -> None:
    process = start(READY + SLEEP)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    assert "launch: stopped. First of 2 rank(s): rank " in errors and "killed by signal 15" in errors
    assert "failed" not in errors and "end of" not in errors


def test_ranks_that_saved_say_so(start: Starter) -> None:
    process = start("signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n" + READY + SLEEP)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75
    assert errors.endswith("launch: stopped; the same command goes on.\n")


def test_a_second_request_to_stop_kills(start: Starter) -> None:
    process = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + SLEEP)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "SIGINT: 2 rank(s) are asked to save and end (TERM); once more kills them." in process.stderr.readline()
    time.sleep(AGAIN_S)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGKILL


def test_a_request_that_is_delivered_twice_is_one(start: Starter, tmp_path: Path) -> None:
    """`timeout 8h python -m launch run …` signals its child, and then the group that the child is in."""
    wait = "while not (folder / 'saved').exists(): time.sleep(0.01)"
    saves = f"def save(*_):\n    {wait}\n    os._exit(75)\nsignal.signal(signal.SIGTERM, save)\n"
    process = start(saves + READY + SLEEP, python=("-c", AT_ONCE))
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None and "are asked to save" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    (tmp_path / "saved").touch()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75 and "again" not in errors


@pytest.mark.parametrize(("ignored", "number"), [("HUP", signal.SIGHUP), ("INT", signal.SIGINT)])
def test_what_the_parent_ignores_stays_ignored(
    start: Starter, tmp_path: Path, ignored: str, number: signal.Signals
) -> None:
    """`nohup python -m launch run …`, and the terminal is closed."""
    process = start(READY + "while not (folder / 'enough').exists(): time.sleep(0.01)\n", f"trap '' {ignored}")
    process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None
    (tmp_path / "enough").touch()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (0, "")


def test_exit_codes_survive_a_parent_that_ignored_its_children(start: Starter) -> None:
    process = start(READY + TOGETHER + "sys.exit(7 * rank)\n", "trap '' CHLD")
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 7
    assert "First of 2 rank(s): rank 1 on " in errors


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&-"])
def test_closed_streams_change_no_exit_status(start: Starter, tmp_path: Path, redirection: str) -> None:
    process = start("print('…', flush=True)\n" + READY + TOGETHER + "sys.exit(5 * rank)\n", f"exec {redirection}")
    assert process.wait(timeout=PATIENCE_S) == 5
    assert "…" in (tmp_path / "run/logs/rank_1.log").read_text(encoding="utf-8")


def test_a_reader_that_is_gone_changes_no_exit_status(start: Starter) -> None:
    process = start(READY + TOGETHER + "sys.exit(5 * rank)\n", "exec 2> >(exit 0)")
    assert process.wait(timeout=PATIENCE_S) == 5


def test_an_ascii_terminal(start: Starter, tmp_path: Path) -> None:
    """What the launcher quotes of a log may have any character."""
    code = "if rank == 1:\n    sys.stdout.buffer.write('東京 …'.encode()); sys.stdout.flush()\n"
    process = start(code + READY + TOGETHER + "sys.exit(5 * rank)\n", "export PYTHONIOENCODING=ascii")
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5
    assert "launch:   | \\u6771\\u4eac \\u2026" in errors


CTRL_C_WHILE_IMPORTING = """
import os, signal, sys
from importlib.abc import MetaPathFinder
class Interrupt(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "launch.commands.runs":
            os.kill(os.getpid(), signal.SIGINT)
from launch.__main__ import main
sys.meta_path.insert(0, Interrupt())
main(["status"])
"""


def test_ctrl_c_while_importing_prints_no_traceback() -> None:
    command = [sys.executable, "-c", CTRL_C_WHILE_IMPORTING]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_a_killed_launcher_leaves_no_orphan(start: Starter, tmp_path: Path) -> None:
    process = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + CHILD + READY + SLEEP)
    pids = [int((tmp_path / f"{kind}_{rank}").read_text()) for kind in ("ready", "child") for rank in (0, 1)]
    assert all(is_running(pid) for pid in pids)
    os.kill(process.pid, signal.SIGKILL)
    assert wait_for(lambda: not any(is_running(pid) for pid in pids))
