"""When a process that trains obeys which signal, and that what its parent ignores stays ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cclm.run import signals
from cclm.run.signals import StopAsked, StopRequest
from cclm.run.stop import StopKind, ask_to_stop, read_stopped

ROOT = Path(__file__).resolve().parents[3]
STARTED = """
import os, signal, sys, time
from cclm.run import signals
signals.AGAIN_S = signals.LEAVE_S = 600.0
with signals.StopRequest.listening() as request:
"""
TRAINS = f"""{STARTED}
    request.begin()
    judged, judge = [], request._judge
    request._judge = lambda number: (judge(number), judged.append(number))
    for word in sys.argv[1:]:
        if word == "later":  # than AGAIN_S
            signals.AGAIN_S = 0.0
            continue
        number = getattr(signal, "SIG" + word)
        num_before = len(judged)
        os.kill(os.getpid(), number)
        while signal.getsignal(number) is not signal.SIG_IGN and len(judged) == num_before:
            time.sleep(0.01)
    print(request.reason(None))
"""
STARTS = f"""{STARTED}
    import ctypes
    request.on_leave = lambda reason: print(reason, flush=True)
    print("starts", flush=True)
    ctypes.CDLL(None).sleep(600)  # the main thread stands in C, where no handler of Python's runs
"""


def run(program: str, *words: str, ignored: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program that listens, started by a shell that ignores some signals."""
    line = f"trap '' {ignored}; " * bool(ignored) + 'exec "$0" -c "$PROGRAM" "$@"'
    environment = {**os.environ, "PROGRAM": program, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-c", line, sys.executable, *words]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False, preexec_fn=ignore_nothing
    )


def ignore_nothing() -> None:
    """These tests may themselves run under nohup, or in the background of a script."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_a_signal_is_remembered_and_the_old_handler_comes_back(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with StopRequest.listening() as request:
            request.begin()
            assert request.reason(tmp_path) == ""
            os.kill(os.getpid(), number)
            assert request.reason(tmp_path) == number.name
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "end"),
    [
        (("TERM",), 0),
        (("INT", "later", "INT"), -signal.SIGINT),
        (("TERM", "later", "TERM"), -signal.SIGTERM),
        (("HUP", "later", "TERM"), -signal.SIGTERM),
        (("INT", "INT", "TERM"), 0),  # a terminal and a launcher: one request
        (("USR1", "later", "TERM"), 0),  # a scheduler's warning, then its limit, while the run still saves
        (("TERM", "later", "USR1"), 0),
    ],
)
def test_a_second_request_kills(words: tuple[str, ...], end: int) -> None:
    done = run(TRAINS, *words)
    assert done.returncode == end
    assert "Traceback" not in done.stderr
    assert ("second request" in done.stderr) == (end != 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ignored", "number", "heard"),
    [("HUP", "HUP", ""), ("INT", "INT", ""), ("HUP", "TERM", "SIGTERM"), ("USR1", "USR1", "SIGUSR1")],
)
def test_what_the_parent_ignores_stays_ignored_but_a_launchers_signal(ignored: str, number: str, heard: str) -> None:
    assert run(TRAINS, number, ignored=ignored).stdout == f"{heard}\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_before_the_first_step_it_ends_at_once_wherever_it_stands(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=ignore_nothing,
    )
    assert process.stdout is not None and process.stdout.readline() == "starts\n"
    process.send_signal(number)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 75
    assert said == f"{number.name} before the first step\n"
    assert "nothing to save" in errors and "Traceback" not in errors


@pytest.mark.slow
def test_a_disk_that_does_not_answer_keeps_nobody() -> None:
    program = f"{STARTED}    signals.LEAVE_S = 0.2\n    request.on_leave = lambda reason: time.sleep(600)\n"
    assert run(program + "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(600)\n").returncode == 75


def test_a_wait_is_interrupted_wherever_it_stands() -> None:
    with StopRequest.listening() as request:
        request.begin()
        with pytest.raises(StopAsked), request.interrupting():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        with pytest.raises(StopAsked), request.interrupting():  # it came before
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGUSR1)  # in a step nothing is interrupted
        assert request.reason(None) == "SIGTERM"


def test_a_wait_is_interrupted_by_the_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "LOOK_S", 0.05)
    with StopRequest.listening() as request:
        request.begin()
        request.folder = tmp_path
        ask_to_stop(tmp_path, "a person asked", StopKind.USER)
        with pytest.raises(StopAsked), request.interrupting():
            time.sleep(60)
        assert request.reason(None) == "a person asked"


@pytest.mark.slow
def test_a_hanging_process_says_where_it_stands() -> None:
    program = STARTED + "    def stand_here():\n        os.kill(os.getpid(), signal.SIGUSR2)\n    stand_here()\n"
    done = run(program)
    assert done.returncode == 0
    assert "in stand_here" in done.stderr


@pytest.mark.slow
def test_what_is_noted_when_there_was_nothing_to_save(tmp_path: Path) -> None:
    program = f"{STARTED}    from functools import partial\n    from pathlib import Path\n"
    program += "    from cclm.run.stop import note_left\n    request.on_leave = partial(note_left, Path(sys.argv[1]))\n"
    program += "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n"
    assert run(program, str(tmp_path)).returncode == 75
    note = read_stopped(tmp_path)
    assert note is not None
    assert (note.step, note.reason, note.kind) == (0, "SIGTERM before the first step", StopKind.SIGNAL)
