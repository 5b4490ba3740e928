from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from cclm.errors import CclmError
from cclm.run.causes import Cause
from cclm.run.status import DoneMarker, DoneRecord, RankStatus, StatusRecord, note_end, read_status


def test_a_rank_says_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 5.0)
    status = RankStatus(tmp_path, 3)
    status.write(0, "starting")
    status.write(7, "training")
    assert json.loads((tmp_path / "status" / "rank_3.json").read_text()) == {
        "rank": 3,
        "step": 7,
        "phase": "training",
        "time": 5.0,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cause": "",
        "reason": "",
    }
    assert [path.name for path in (tmp_path / "status").iterdir()] == ["rank_3.json"]


def test_a_rank_says_why_it_ends(tmp_path: Path) -> None:
    RankStatus(tmp_path, 1).write(7, "training")
    note_end(tmp_path, 1, Cause.USER_ERROR, "expected this,\n got that. " + "x" * 1000)
    said = read_status(tmp_path / "status/rank_1.json")
    assert said is not None
    assert (said.step, said.phase, said.cause) == (7, "user_error", Cause.USER_ERROR)
    assert said.reason.startswith("expected this, got that. x")
    assert len(said.reason) == 500


def test_a_rank_leaves_the_words_of_another_start_alone(tmp_path: Path) -> None:
    """It may be a second start by mistake, which the lock refuses."""
    RankStatus(tmp_path, 0).write(7, "training")
    path = tmp_path / "status/rank_0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": os.getpid() + 1}))
    before = path.read_text()
    note_end(tmp_path, 0, Cause.FOLDER_LOCKED, "another run is using it")
    assert path.read_text() == before


def test_a_full_disk_does_not_keep_a_rank_from_ending(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("no folder: nothing can be written")
    note_end(tmp_path, 0, Cause.DISK_FULL, "full")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rank": 1}'])
def test_what_cannot_be_read_is_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "rank_0.json").write_text(text)
    assert read_status(tmp_path / "rank_0.json") is None
    assert read_status(tmp_path / "rank_1.json") is None


def test_what_an_older_version_wrote_can_be_read(tmp_path: Path) -> None:
    old: dict[str, Any] = {"rank": 0, "step": 3, "phase": "training", "time": 1.5, "host": "n1", "pid": 4}
    (tmp_path / "rank_0.json").write_text(json.dumps(old))
    assert read_status(tmp_path / "rank_0.json") == StatusRecord(**old)


def test_half_a_marker_is_named(tmp_path: Path) -> None:
    (tmp_path / "done.json").write_text('{"step": 17')
    with pytest.raises(
        CclmError, match=r"done\.json: expected the marker of a run that is done, got .*Remove the file"
    ):
        DoneMarker(tmp_path).read()


def test_a_run_is_done_when_the_marker_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 9.0)
    marker = DoneMarker(tmp_path)
    assert marker.read() is None
    marker.write(1700, 500.12345)
    assert marker.read() == DoneRecord(step=1700, seconds=500.123, time=9.0)
    assert marker.path == tmp_path / "done.json"
