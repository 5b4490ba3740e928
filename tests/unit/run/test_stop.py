from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cclm.run import stop
from cclm.run.stop import StopKind, StopRequest, ask_to_stop, read_request, read_stopped

ROOT = Path(__file__).resolve().parents[3]
HANG = """
import os, signal, sys, time
from cclm.run.stop import StopRequest
def stand_here():
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(0.01)
with StopRequest.listening() as request:
    stand_here()
"""
LISTEN = """
import os, signal, sys, time
from cclm.run import stop
stop.AGAIN_S = 0.05
with stop.StopRequest.listening() as request:
    for number in map(int, sys.argv[1:]):
        os.kill(os.getpid(), number)
        time.sleep(0.1)
    print(request.reason(None))
"""


def listen(*numbers: int, ignored: str = "") -> subprocess.CompletedProcess[str]:
    """A process that listens, started by a shell that ignores some signals, and sends itself others."""
    line = f"trap '' {ignored}; " * bool(ignored) + 'exec "$0" -c "$PROGRAM" "$@"'
    environment = {**os.environ, "PROGRAM": LISTEN, "PYTHONPATH": str(ROOT)}
    words = ["bash", "-c", line, sys.executable, *map(str, numbers)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_remembered_and_the_old_handler_comes_back(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with StopRequest.listening() as request:
        assert request.reason(tmp_path) == ""
        os.kill(os.getpid(), number)
        assert request.reason(tmp_path) == number.name
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_the_process() -> None:
    assert listen(signal.SIGINT, signal.SIGINT).returncode == -signal.SIGINT
    assert listen(signal.SIGINT, signal.SIGINT).stderr == ""
    assert listen(signal.SIGTERM, signal.SIGINT, signal.SIGTERM).returncode == 0


@pytest.mark.parametrize(
    ("ignored", "number", "heard"),
    [("HUP", signal.SIGHUP, ""), ("INT", signal.SIGINT, ""), ("HUP", signal.SIGTERM, "SIGTERM"),
     ("USR1", signal.SIGUSR1, "SIGUSR1")],
)  # fmt: skip
def test_what_the_parent_ignores_stays_ignored_but_a_launchers_signal(ignored: str, number: int, heard: str) -> None:
    assert listen(number, ignored=ignored).stdout == f"{heard}\n"


def test_the_file_is_read_where_a_folder_is_given(tmp_path: Path) -> None:
    request = StopRequest()
    assert request.reason(tmp_path) == ""
    ask_to_stop(tmp_path, "maintenance at noon", StopKind.SCHEDULER)
    assert request.reason(tmp_path) == "maintenance at noon"
    assert request.reason(None) == ""
    asked = read_request(tmp_path)
    assert asked is not None
    assert asked.kind is StopKind.SCHEDULER
    assert asked.who.endswith(os.uname().nodename)
    assert asked.time == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", stop.BY_HAND), ("\n", stop.BY_HAND), ("enough for today\n", "enough for today"), ('{"kind": "what"}',) * 2],
)
def test_what_a_person_writes_by_hand_is_a_request(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "stop").write_text(text)
    asked = read_request(tmp_path)
    assert asked is not None
    assert (asked.kind, asked.reason) == (StopKind.USER, reason)


def test_a_person_may_choose_the_kind(tmp_path: Path) -> None:
    (tmp_path / "stop").write_text('{"kind": "scheduler", "reason": "the node is needed"}')
    asked = read_request(tmp_path)
    assert asked is not None
    assert (asked.kind, asked.reason) == (StopKind.SCHEDULER, "the node is needed")


def test_a_request_that_asks_nothing_until_somebody_touches_it(tmp_path: Path) -> None:
    stop.ask_nothing(tmp_path)
    assert read_request(tmp_path) is None
    (tmp_path / "stop").touch()
    asked = read_request(tmp_path)
    assert asked is not None
    assert asked.kind is StopKind.USER


def test_an_obeyed_request_is_noted_once(tmp_path: Path) -> None:
    assert read_stopped(tmp_path) is None
    ask_to_stop(tmp_path, "a person asked", StopKind.USER)
    stop.note_stopped(tmp_path, 12, "a person asked")
    note = read_stopped(tmp_path)
    assert note is not None
    assert (note.step, note.reason, note.kind) == (12, "a person asked", StopKind.USER)
    assert read_request(tmp_path) is None
    stop.note_stopped(tmp_path, 13, "SIGTERM")
    note = read_stopped(tmp_path)
    assert note is not None
    assert note.kind is StopKind.SIGNAL


@pytest.mark.parametrize(("reason", "kind"), [("rest: a person asked", StopKind.USER), ("TERM", StopKind.SIGNAL)])
def test_the_note_of_an_older_version(reason: str, kind: StopKind, tmp_path: Path) -> None:
    (tmp_path / "stopped.json").write_text(json.dumps({"step": 4, "reason": reason, "time": 1.0}))
    note = read_stopped(tmp_path)
    assert note is not None
    assert (note.step, note.reason, note.kind) == (4, reason.removeprefix("rest: "), kind)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What an earlier start left, an hour ago."""
    stop.note_stopped(tmp_path, 12, "SIGUSR1")
    ask_to_stop(tmp_path, "again", StopKind.USER)
    (tmp_path / "status").mkdir()
    (tmp_path / "status/rank_0.json").touch()
    (tmp_path / "done.json").touch()
    for path in tmp_path.rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_start_knows_nothing_of_an_earlier_ones_notes(left: Path) -> None:
    stop.clear(left)
    stop.clear(left)
    assert files(left) == ["done.json"]


def test_a_rank_without_our_launcher_clears_what_is_older_than_itself(left: Path) -> None:
    ask_to_stop(left, "meant for this start", StopKind.USER)
    stop.clear_for_this_start(left)
    assert files(left) == ["done.json", "stop"]


def test_a_rank_leaves_what_its_launcher_has_cleared(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may have come between the launcher's start and its own."""
    monkeypatch.setenv(stop.CLEARED_VARIABLE, str(left))
    stop.clear_for_this_start(left)
    assert "stop" in files(left)
    monkeypatch.setenv(stop.CLEARED_VARIABLE, str(left / "another"))
    stop.clear_for_this_start(left)
    assert files(left) == ["done.json"]


def test_a_hanging_process_says_where_it_stands() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANG], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert "in stand_here" in done.stderr
