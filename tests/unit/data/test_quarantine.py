from __future__ import annotations

import json
from pathlib import Path

from cclm.data.batch import BadSample
from cclm.data.counts import Quarantine


def bad(key: str, reason: str = "image_broken") -> BadSample:
    return BadSample(
        view="image_text", source="set", shard="a.tar", offset=512, key=key, reason=reason, message=f"{key} is bad"
    )


def test_samples_are_kept_and_counted(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    assert quarantine.total == 0 and quarantine.summary() == "no bad samples"
    quarantine.add(3, [bad("a"), bad("b", "json_broken")])
    quarantine.add(4, [bad("c")])
    assert quarantine.total == 3
    assert quarantine.summary() == "2 × image_broken in set; 1 × json_broken in set; the last: c is bad"
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "step": 3,
        "view": "image_text",
        "source": "set",
        "shard": "a.tar",
        "offset": 512,
        "key": "a",
        "reason": "image_broken",
        "message": "a is bad",
    }


def test_a_resumed_run_repeats_no_line(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    first = Quarantine(path)
    for step in range(6):
        first.add(step, [bad(f"k{step}")])
    whole = path.read_bytes()
    second = Quarantine(path, next_step=4)
    assert second.summary().endswith("the last: k3 is bad")
    assert second.total == 4 and second.counts["image_broken", "set"] == 4
    for step in (4, 5):
        second.add(step, [bad(f"k{step}")])
    assert path.read_bytes() == whole and second.total == 6


def test_files_of_ranks_that_are_gone_still_count(tmp_path: Path) -> None:
    gone = tmp_path / "rank_1.jsonl"
    before = Quarantine(gone)
    for step in (1, 2, 5):
        before.add(step, [bad(f"g{step}")])
    Quarantine(tmp_path / "rank_0.jsonl").add(0, [bad("k0")])
    after = Quarantine(tmp_path / "rank_0.jsonl", next_step=4, left_behind=[gone])
    assert after.total == 3, "one of its own, two of the other; step 5 is done again"
    after.add(5, [bad("g5")])
    assert "g5" not in gone.read_text() and "g2" in gone.read_text()


def test_a_step_without_bad_samples_writes_nothing(tmp_path: Path) -> None:
    Quarantine(tmp_path / "quarantine.jsonl").add(0, [])
    assert not (tmp_path / "quarantine.jsonl").exists()
