from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from cclm.track.status import DoneMarker, DoneRecord, RankStatus, StatusRecord, read_statuses


def test_a_rank_says_what_it_does(tmp_path: Path) -> None:
    status = RankStatus(tmp_path, 3, clock=lambda: 5.0)
    status.write(0, "starting")
    status.write(7, "training")
    assert json.loads((tmp_path / "status" / "rank_3.json").read_text()) == {
        "rank": 3,
        "step": 7,
        "phase": "training",
        "time": 5.0,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    assert [path.name for path in (tmp_path / "status").iterdir()] == ["rank_3.json"]


def test_statuses_are_read_by_rank(tmp_path: Path) -> None:
    for rank in (10, 2, 0):
        RankStatus(tmp_path, rank).write(rank, "training")
    records = read_statuses(tmp_path)
    assert [record.rank for record in records] == [0, 2, 10]
    assert isinstance(records[0], StatusRecord)


def test_no_status_yet(tmp_path: Path) -> None:
    assert read_statuses(tmp_path) == []


def test_a_run_is_done_when_the_marker_says_so(tmp_path: Path) -> None:
    marker = DoneMarker(tmp_path, clock=lambda: 9.0)
    assert marker.read() is None
    marker.write(1700, 500.12345)
    assert marker.read() == DoneRecord(step=1700, seconds=500.123, time=9.0)
    assert marker.path == tmp_path / "done.json"


def test_a_run_that_goes_on_is_not_done(tmp_path: Path) -> None:
    marker = DoneMarker(tmp_path)
    marker.clear()
    marker.write(1, 1.0)
    marker.clear()
    assert marker.read() is None
