from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cclm.run import stop
from cclm.run.signals import BEGAN, StopRequest
from cclm.run.stop import StopKind, ask_to_stop, read_request, read_stopped


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


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What an earlier start left, an hour before this process began."""
    stop.note_stopped(tmp_path, 12, "SIGUSR1")
    ask_to_stop(tmp_path, "again", StopKind.USER)
    (tmp_path / "status").mkdir()
    (tmp_path / "status/rank_0.json").touch()
    (tmp_path / "done.json").touch()
    for path in tmp_path.rglob("*"):
        os.utime(path, (BEGAN - 3600,) * 2)
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
