from __future__ import annotations

from pathlib import Path

import pytest

from cclm.run.status import DoneMarker
from cclm.run.stop import note_stopped
from launch.slurm.history import lives_of, read_history
from launch.slurm.restart import REST, Verdict, elements_left, judge_command, judge_training, why_not_done
from tests.unit.launch.slurm.run_folders import begun, checkpoint, ended, make_run, rank_end, write_plan


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def judge(run: Path) -> Verdict:
    return judge_training(run, lives_of(read_history(run)), max_tries=3)


def test_done_is_what_the_marker_says_whatever_the_codes(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 1, 1)
    DoneMarker(run).write(step=40, seconds=1.0)
    assert judge(run) == Verdict(outcome="done", goes_on=False, step=40, why="done at step 40")


def test_good_codes_without_a_marker_are_not_done(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 0, 0)
    rank_end(run, 1, 0)
    verdict = judge(run)
    assert (verdict.outcome, verdict.goes_on) == ("failed", True)


def test_stopped_goes_on(run: Path) -> None:
    begun(run, 0)
    checkpoint(run, 12)
    note_stopped(run, 12, "time limit")
    verdict = judge(run)
    assert (verdict.outcome, verdict.goes_on, verdict.step) == ("stopped", True, 12)
    assert verdict.why == "saved at step 12: time limit; goes on in another life"


def test_stopped_by_a_person_rests(run: Path) -> None:
    begun(run, 0)
    checkpoint(run, 12)
    note_stopped(run, 12, REST + "maintenance")
    verdict = judge(run)
    assert (verdict.outcome, verdict.goes_on, verdict.why) == ("stopped", False, "saved at step 12: maintenance")


def test_a_crash_with_progress_goes_on(run: Path) -> None:
    checkpoint(run, 10)
    begun(run, 10)
    checkpoint(run, 20)
    rank_end(run, 1, 1, words="ValueError: x")
    verdict = judge(run)
    assert verdict.goes_on
    assert verdict.why == "rank 1 on n2: exit code 1: ValueError: x; goes on from step 20"


def test_a_crash_loop_ends_and_says_why(run: Path) -> None:
    checkpoint(run, 10)
    for number in (1, 2):
        life = begun(run, 10)
        rank_end(run, 1, 1, life=life, words="ValueError: x")
        assert judge(run).why.endswith(f"try {number} of 3 at step 10")
        ended(run, life, "failed")
    life = begun(run, 10)
    rank_end(run, 1, 1, life=life, words="ValueError: x")
    verdict = judge(run)
    assert not verdict.goes_on
    assert verdict.why == (
        "3 lives began at step 10 and none saved a newer checkpoint; the last: rank 1 on n2: exit code 1: ValueError: x"
    )


@pytest.mark.parametrize("outcome", ["stopped", "bad nodes"])
def test_lives_that_were_asked_to_stop_are_no_tries(run: Path, outcome: str) -> None:
    for _ in range(4):
        ended(run, begun(run, 10), outcome)
    checkpoint(run, 10)
    rank_end(run, 0, 1, life=begun(run, 10))
    assert judge(run).goes_on


def test_lives_cut_off_from_outside_are_tries(run: Path) -> None:
    for _ in range(3):
        begun(run, 0)
    assert not judge(run).goes_on
    assert "without a word from any rank" in judge(run).why


def test_a_mistake_of_the_user_is_not_retried(run: Path) -> None:
    begun(run, 0)
    checkpoint(run, 10)
    rank_end(run, 0, 2, words="error: expected a finite loss, got loss not finite.")
    verdict = judge(run)
    assert not verdict.goes_on
    assert verdict.why.endswith("got loss not finite. (a retry would not help)")


def test_a_lost_nodes_lock_is_waited_for(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 0, 2, words="error: expected a run folder, got one that process 7 on n1 is training in.")
    assert judge(run).goes_on


def test_a_full_disk_is_not_retried(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 0, 1, why="the disk of the run folder is full", words="OSError")
    verdict = judge(run)
    assert (verdict.goes_on, verdict.why) == (
        False, "rank 0 on n1: the disk of the run folder is full: OSError (a retry would not help)"
    )  # fmt: skip


def test_the_cause_is_told_not_its_consequences(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 0, 143, time=1.0)
    rank_end(run, 1, 1, time=2.0, words="MemoryError")
    rank_end(run, 2, 1, time=3.0, words="Connection closed by peer")
    assert judge(run).why.startswith("rank 1 on n2: exit code 1: MemoryError")


def test_a_killed_rank_is_the_cause_of_lost_connections(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 0, 1, time=1.0, words="Connection closed by peer")
    rank_end(run, 1, 137, time=1.2)
    rank_end(run, 2, 143, time=1.1)
    assert judge(run).why.startswith("rank 1 on n2: killed by signal 9")
    rank_end(run, 1, 137, time=9.0)
    assert judge(run).why.startswith("rank 0 on n1: exit code 1"), "that one Slurm has killed, afterwards"


def test_of_hung_ranks_the_one_that_does_not_wait_for_others(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 0, 137, time=1.0, why="hung: no sign of life for 60 s; waits for other ranks in all_reduce (x.py:1)")
    rank_end(run, 1, 137, time=2.0, why="hung: no sign of life for 60 s; stands in read (y.py:2)")
    assert judge(run).why.startswith("rank 1 on n2: hung: no sign of life for 60 s; stands in read")


def test_records_of_an_earlier_life_do_not_count(run: Path) -> None:
    begun(run, 0)
    begun(run, 0)
    rank_end(run, 1, 2, life=0)
    assert judge(run).goes_on


def test_a_command_is_done_when_every_task_ended_well(run: Path) -> None:
    rank_end(run, 0, 0)
    assert judge_command(run, 0, 2).why == "1 of 2 task(s) ended without a word"
    rank_end(run, 1, 0)
    assert judge_command(run, 0, 2).outcome == "done"
    rank_end(run, 1, 3, words="no such file")
    assert judge_command(run, 0, 2).why == "rank 1 on n2: exit code 3: no such file"


def element_end(run: Path, number: int, code: int) -> None:
    rank_end(run, number, code)
    (run / f"status/exit_rank_{number}.json").rename(run / f"status/exit_task_{number}.json")


def test_an_array_is_done_when_every_element_is(tmp_path: Path) -> None:
    run = make_run(tmp_path, array=3, is_training=False)
    element_end(run, 0, 0)
    element_end(run, 1, 1)
    assert elements_left(run, 3) == [1, 2]
    assert why_not_done(run) == "element(s) 1, 2 have not ended with code 0"
    for number in (1, 2):
        element_end(run, number, 0)
    assert why_not_done(run) == ""


def test_a_training_is_done_by_its_marker_and_a_command_by_its_last_life(run: Path, tmp_path: Path) -> None:
    assert why_not_done(run) == "there is no done.json"
    write_plan(run, is_training=False)
    ended(run, begun(run, 0), "failed")
    assert why_not_done(run) == "its last life did not end well"
    ended(run, begun(run, 0), "done")
    assert why_not_done(run) == ""
    local = tmp_path / "local"
    assert why_not_done(local) == "there is no done.json"
    DoneMarker(local).write(step=1, seconds=1.0)
    assert why_not_done(local) == ""
