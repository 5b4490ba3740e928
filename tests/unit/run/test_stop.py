from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cclm.run import stop
from cclm.run.stop import StopRequest

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


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_is_remembered_and_the_old_handler_comes_back(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with StopRequest.listening() as request:
        assert request.reason(tmp_path) == ""
        os.kill(os.getpid(), number)
        assert request.reason(tmp_path) == number.name
    assert signal.getsignal(number) is before


def test_the_file_is_read_where_a_folder_is_given(tmp_path: Path) -> None:
    request = StopRequest()
    assert request.reason(tmp_path) == ""
    (tmp_path / "stop").write_text("")
    assert request.reason(tmp_path) == "", "an empty file asks nothing: it is there so that nobody caches its absence"
    stop.ask_to_stop(tmp_path, "maintenance at noon")
    assert request.reason(tmp_path) == "maintenance at noon"
    assert request.reason(None) == ""


def test_an_obeyed_request_is_noted_once(tmp_path: Path) -> None:
    assert stop.read_stopped(tmp_path) is None
    stop.ask_to_stop(tmp_path, "SIGUSR1")
    stop.note_stopped(tmp_path, 12, "SIGUSR1")
    note = stop.read_stopped(tmp_path)
    assert note is not None
    assert (note.step, note.reason) == (12, "SIGUSR1")
    assert stop.read_request(tmp_path) == ""


def test_a_new_life_knows_nothing_of_the_old_ones_requests(tmp_path: Path) -> None:
    stop.note_stopped(tmp_path, 12, "SIGUSR1")
    stop.ask_to_stop(tmp_path, "again")
    stop.clear(tmp_path)
    stop.clear(tmp_path)
    assert stop.read_stopped(tmp_path) is None
    assert stop.read_request(tmp_path) == ""


def test_a_hanging_process_says_where_it_stands() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANG], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert "in stand_here" in done.stderr
