from __future__ import annotations

import time

import pytest

from cclm.errors import Cause
from cclm.run.talk import MOST_GAP_S, OVER, Ending, Stuck, Talk, judge_hang
from tests.unit.run.boards import Clock, Shelf


def stuck(rank: int, cause: Cause = Cause.WAITING, *, step: int = 5, place: str = "waits in a") -> Stuck:
    return Stuck(rank=rank, host="n", section="step", step=step, seconds=9.0, cause=cause, place=place)


@pytest.mark.parametrize(
    ("found", "blamed", "says"),
    [
        (
            (stuck(0), stuck(1, Cause.HUNG, place="stands in read"), stuck(2)),
            1,
            "rank 1 on n stands in read, in step 5",
        ),
        ((stuck(0), stuck(2)), 1, "rank 1 does not say where it stands"),
        ((stuck(0), stuck(1), stuck(2, place="waits in b")), 2, "rank 2 on n waits in b"),
        ((stuck(0, step=6), stuck(1), stuck(2, step=6)), 1, "rank 1 on n waits in a, in step 5"),
        ((stuck(0, Cause.HUNG), stuck(1, Cause.HUNG, step=4), stuck(2)), 1, "rank 1 on n waits in a, in step 4"),
    ],
)
def test_the_rank_that_does_not_wait_is_to_blame_and_every_rank_finds_the_same(
    found: tuple[Stuck, ...], blamed: int, says: str
) -> None:
    who, said = judge_hang({one.rank: Stuck.of(one.text) for one in found}, 3)
    assert who == blamed
    assert said.startswith(says) and said.count(" on n waits in a") + said.count("; and 1 more") >= 1
    assert judge_hang({one.rank: one for one in reversed(found)}, 3) == (who, said)


def test_the_first_word_stands_and_both_hear_it() -> None:
    shelf, clock = Shelf(), Clock()
    talks = [Talk(shelf, rank, 2, "n", 0.0, clock=clock) for rank in range(2)]
    for rank in (1, 0):
        talks[rank].say_end(Ending(rank=rank, host="n", cause=Cause.TRANSIENT, reason=f"of {rank}"))
        talks[rank].exchange()
    for talk in talks:
        assert talk.first == Ending(rank=1, host="n", cause=Cause.TRANSIENT, reason="of 1")
        assert str(talk.first) == "rank 1 on n: transient: of 1"


def test_a_rank_without_a_sign_of_life_is_told_by_rank_0_with_where_it_was() -> None:
    shelf, clock = Shelf(), Clock()
    talks = [Talk(shelf, rank, 3, f"n{rank}", 20.0, clock=clock) for rank in range(3)]
    talks[1].where = "step 12"
    for talk in talks:
        talk.exchange()
    shelf.put("at 2", OVER)  # it has done what there was to do
    while talks[0].first is None:
        assert clock.now < 140.0
        clock.now += 4.0
        talks[0].exchange()
    told = talks[0].first
    assert (told.rank, told.host, told.cause, told.hangs) == (1, "n1", Cause.HUNG, False)
    assert told.reason == "no sign of it for 24 s; it was in step 12"
    assert clock.now == 132.0, "heard of in the exchange behind the one that judged"


def test_time_in_which_this_process_was_suspended_is_no_silence() -> None:
    shelf, clock = Shelf(), Clock()
    talks = [Talk(shelf, rank, 2, "n", 3 * MOST_GAP_S, clock=clock) for rank in range(2)]
    for _ in range(3):
        for talk in talks:
            talk.exchange()
        clock.now += 3600.0
        talks[0].exchange()
    assert talks[0].first is None


@pytest.mark.slow
def test_rank_0_goes_when_the_others_have_read_it_and_a_board_that_is_gone_is_noticed() -> None:
    shelf = Shelf()
    talks = [Talk(shelf, rank, 2, "n", 0.0) for rank in range(2)]
    for talk in talks:
        talk.start()
    talks[0].say_end(Ending(rank=0, host="n", cause=Cause.DISK_FULL, reason="full"))
    while talks[1].first is None:
        time.sleep(0.01)
    talks[1].leave()
    assert "left 1" in shelf.texts
    talks[0].leave()
    shelf.is_gone = True
    for talk in talks:
        talk.close()
        assert talk.is_lost
