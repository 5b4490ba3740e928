from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cclm.errors import Cause, CclmError
from cclm.run.causes import EXIT_CODES
from cclm.run.status import RankStatus, read_status
from cclm.run.talk import MOST_GAP_S, Ending, Talk
from cclm.run.watch import GRACE_S, LOST_S, REPORT_S, START, Limits, Watch
from tests.unit.run.boards import Clock, Shelf

LIMITS = {"floors_s": {START: 50.0, "step": 10.0}, "first_s": 30.0, "factor": 3.0, "num_first": 2}


def look_until(watch: Watch, clock: Clock, seconds: float) -> tuple[Cause, str] | None:
    """Look once a second for so long, or until it must end."""
    for _ in range(round(seconds)):
        clock.now += 1.0
        if (end := watch.look()) is not None:
            return end
    return None


def test_a_section_may_last_so_many_times_the_slowest_of_the_first_but_never_less_than_its_floor() -> None:
    limits = Limits(**LIMITS)
    assert [limits.limit_s(name) for name in (START, "step", "save")] == [50.0, 30.0, float("inf")]
    limits.learn("step", 1.0)
    assert limits.limit_s("step") == 10.0
    limits.learn("step", 5.0)
    limits.learn("step", 100.0)
    assert limits.limit_s("step") == 15.0, "the third says nothing any more"
    assert Limits(floors_s={"step": 10.0}).limit_s("step") == float("inf"), "0: the first may last for ever"


def test_one_process_ends_when_it_does_not_go_on_and_leaves_its_stacks(tmp_path: Path) -> None:
    clock = Clock()
    watch = Watch(tmp_path, 0, Limits(**LIMITS), clock=clock)
    assert look_until(watch, clock, 50) is None
    watch.begin()
    for _ in range(3):
        with watch.section("step", 3):
            assert look_until(watch, clock, 9) is None
    with watch.section("step", 4):
        assert look_until(watch, clock, 15) is None
        with watch.section("save", 4):  # has no limit here, and is no part of the step
            assert look_until(watch, clock, 200) is None
        assert look_until(watch, clock, 12) is None
        watch.beat()
        assert look_until(watch, clock, 27) is None
        found = look_until(watch, clock, 1)
    assert found is not None and found[0] is Cause.HUNG
    assert "in step 4 since 28 s" in found[1]
    assert "in look_until" in (tmp_path / "stacks/rank_0.txt").read_text()


def test_a_suspended_process_has_not_been_late(tmp_path: Path) -> None:
    clock = Clock()
    watch = Watch(tmp_path, 0, Limits(**LIMITS), clock=clock)
    with watch.section("step", 0):
        for _ in range(5):
            clock.now += 86400.0
            assert watch.look() is None
        clock.now += 2 * MOST_GAP_S
        assert watch.look() is None


def pair(folder: Path, silent_s: float = 0.0) -> tuple[list[Watch], list[Talk], Clock]:
    """Two ranks over one board, whose threads do not run."""
    shelf, clock = Shelf(), Clock()
    talks = [Talk(shelf, rank, 2, "n", silent_s, clock=clock) for rank in range(2)]
    watches = [
        Watch(folder, rank, Limits(**LIMITS), talk, silent_s=silent_s, clock=clock) for rank, talk in enumerate(talks)
    ]
    for watch in watches:
        watch.begin()
    return watches, talks, clock


def test_ranks_that_hang_say_where_they_stand_and_judge_alike(tmp_path: Path) -> None:
    watches, talks, clock = pair(tmp_path)
    found: list[tuple[Cause, str] | None] = [None, None]
    with watches[0].section("step", 7), watches[1].section("data", 8):
        for _ in range(31 + 5):
            clock.now += 1.0
            found = [end or watch.look() for end, watch in zip(found, watches, strict=True)]
            for talk in talks:
                talk.exchange()
    assert found[0] is not None and found[1] is not None
    assert [found[0][0], found[1][0]] == [Cause.HUNG, Cause.WAITING], "both stand here: the earlier step is to blame"
    assert found[0][1] == found[1][1] and found[0][1].startswith("rank 0 on ")
    assert "in data 8" in found[0][1] and str(tmp_path / "stacks") in found[0][1]


def test_a_rank_that_does_not_answer_is_to_blame_for_a_hang(tmp_path: Path) -> None:
    watches, talks, clock = pair(tmp_path)
    found = None
    with watches[0].section("step", 7):
        for _ in range(round(31 + REPORT_S + 5)):
            clock.now += 1.0
            found = found or watches[0].look()
            talks[0].exchange()
    assert found is not None and found[0] is Cause.WAITING
    assert found[1].startswith("rank 1 does not say where it stands; rank 0 on ")


@pytest.mark.parametrize(("told", "cause"), [(Cause.USER_ERROR, Cause.ENDED), (Cause.STOPPED, Cause.STOPPED)])
def test_a_rank_ends_when_another_has_told_its_end_but_not_at_once(tmp_path: Path, told: Cause, cause: Cause) -> None:
    watches, talks, clock = pair(tmp_path)
    watches[1].tell(told, "expected this, got that. Mend it.")
    for talk in reversed(talks):
        talk.exchange()
    assert watches[1].look() is None, "it ends by itself"
    assert look_until(watches[0], clock, GRACE_S - 1) is None
    found = look_until(watches[0], clock, 1)
    assert found is not None and found[0] is cause
    assert "rank 1 on " in found[1] and "expected this, got that" in found[1]


def test_a_job_that_is_suspended_again_and_again_goes_on(tmp_path: Path) -> None:
    watches, talks, clock = pair(tmp_path, silent_s=20.0)
    for _ in range(5):
        talks[1].exchange()
        assert look_until(watches[1], clock, 3) is None
        clock.now += 1000.0
        assert look_until(watches[1], clock, 3) is None


def test_a_rank_whose_board_does_not_answer_ends_with_what_rank_0_left_in_the_folder(tmp_path: Path) -> None:
    watches, talks, clock = pair(tmp_path, silent_s=20.0)
    RankStatus(tmp_path, 0).write(3, "disk_full", cause=Cause.DISK_FULL, reason="no room")
    talks[1].exchange()
    assert look_until(watches[1], clock, 21) is None  # the first look hears the answer
    assert look_until(watches[1], clock, LOST_S - 1) is None
    found = look_until(watches[1], clock, 1)
    assert found is not None and found[0] is Cause.ENDED
    assert "rank 0 on " in found[1] and "has ended: disk_full: no room" in found[1]


def test_a_lost_connection_is_told_as_the_end_of_the_rank_that_caused_it(tmp_path: Path) -> None:
    shelf = Shelf()
    first = Ending(rank=1, host="n2", cause=Cause.USER_ERROR, reason="got a poem")
    shelf.put("end", first.text)
    shelf.put("left 1", "over")
    for error, cause in ((ConnectionResetError("peer"), Cause.ENDED), (CclmError(expected="a", got="b", do="c"), None)):
        watch = Watch(tmp_path, 0, talk=Talk(shelf, 0, 2, "n1", 0.0))
        with pytest.raises((CclmError, ConnectionResetError)) as caught, watch.watching():
            raise error
        assert getattr(caught.value, "cause", None) is cause
        assert ("got rank 1 on n2: user error: got a poem" in str(caught.value)) == (cause is Cause.ENDED)


@pytest.mark.slow
def test_a_late_rank_notes_its_end_and_leaves_with_its_own_code(tmp_path: Path) -> None:
    left, codes = threading.Event(), list[int]()

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    watch = Watch(tmp_path, 0, Limits(floors_s={START: 0.1}), leave=leave, recorded=lambda path: "all_gather 7")
    with watch.watching():
        assert left.wait(60.0)
    assert codes == [EXIT_CODES[Cause.HUNG]] == [76]
    said = read_status(tmp_path / "status/rank_0.json")
    assert said is not None and (said.cause, said.phase) == ("hung", "hung")
    assert "last collective all_gather 7" in said.reason
