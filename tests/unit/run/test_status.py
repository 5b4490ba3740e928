from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from cclm.errors import CclmError
from cclm.run.status import DoneMarker, DoneRecord, RankStatus


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


def test_half_a_marker_is_named(tmp_path: Path) -> None:
    (tmp_path / "done.json").write_text('{"step": 17')
    with pytest.raises(
        CclmError, match=r"done\.json: expected the marker of a run that is done, got .*Remove the file"
    ):
        DoneMarker(tmp_path).read()


def test_a_run_is_done_when_the_marker_says_so(tmp_path: Path) -> None:
    marker = DoneMarker(tmp_path, clock=lambda: 9.0)
    assert marker.read() is None
    marker.write(1700, 500.12345)
    assert marker.read() == DoneRecord(step=1700, seconds=500.123, time=9.0)
    assert marker.path == tmp_path / "done.json"
