from __future__ import annotations

from pathlib import Path

from cclm.run.causes import Cause
from cclm.run.status import RankStatus, note_end
from launch.watch.run_folder import in_groups, read_ranks
from tests.unit.launch.slurm.run_folders import rank_end, rank_says


def test_ranks_that_say_the_same_share_a_line(tmp_path: Path) -> None:
    for rank in range(4):
        rank_says(tmp_path, rank, step=7, time=100.0 if rank != 2 else 40.0)
    ranks = read_ranks(tmp_path, now=101.0)
    assert [(rank.rank, rank.silent_s) for rank in ranks] == [(0, 1.0), (1, 1.0), (2, 61.0), (3, 1.0)]
    assert in_groups(ranks, silent_after_s=60.0) == [
        "0-1,3 on n1, n2, n4: training at step 7",
        "2 on n3: training at step 7, silent for 61 s",
    ]
    assert len(in_groups(ranks, silent_after_s=90.0)) == 1


def test_how_a_rank_ended_is_told_of_this_attempt_only(tmp_path: Path) -> None:
    for rank in (0, 1):
        rank_says(tmp_path, rank, step=7, time=100.0)
        rank_end(tmp_path, rank, 75 if rank == 0 else 1, attempt=3, reason="boom")
    assert in_groups(read_ranks(tmp_path, now=200.0, attempt=3), silent_after_s=1.0) == [
        "0 on n1: training at step 7, silent for 100 s",
        "1 on n2: rank 1 on n2: exit code 1: boom",
    ]
    assert [rank.end for rank in read_ranks(tmp_path, now=200.0, attempt=4)] == ["", ""]


def test_what_was_said_in_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    rank_says(tmp_path, 0, step=7, time=100.0)
    rank_says(tmp_path, 1, step=9, time=110.0)
    assert [rank.rank for rank in read_ranks(tmp_path, now=120.0, since=105.0)] == [1]


def test_many_hosts_are_not_all_named(tmp_path: Path) -> None:
    for rank in range(6):
        rank_says(tmp_path, rank, step=1, time=1.0)
    assert in_groups(read_ranks(tmp_path, now=1.0), silent_after_s=9.0) == [
        "0-5 on n1, n2, n3, n4 and 2 more: training at step 1"
    ]


def test_a_rank_that_said_itself_why_it_ended(tmp_path: Path) -> None:
    RankStatus(tmp_path, 0).write(7, "training")
    note_end(tmp_path, 0, Cause.DISK_FULL, "no room for step 8")
    (line,) = in_groups(read_ranks(tmp_path, now=1e12), silent_after_s=1.0)
    assert line.endswith(": disk full: no room for step 8")


def test_a_broken_file_of_one_rank_hides_no_other(tmp_path: Path) -> None:
    rank_says(tmp_path, 0, step=7, time=100.0)
    rank_says(tmp_path, 1, step=7, time=100.0)
    (tmp_path / "status/rank_0.json").write_text("{")
    assert [rank.rank for rank in read_ranks(tmp_path, now=101.0)] == [1]
