"""What is decided after an attempt: by fields and files. No message decides anything."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cclm.run import stop
from cclm.run.causes import Cause
from cclm.run.status import DoneMarker, rank_to_blame, read_ends, task_codes
from cclm.run.stop import StopKind, ask_to_stop, note_stopped
from launch.slurm.history import (
    HISTORY,
    Event,
    add_event,
    attempts_since_submission,
    is_stopped_by_user,
    read_history,
    tries_at,
)
from launch.slurm.restart import (
    RestartDecision,
    decide_command,
    decide_restart,
    tasks_left,
    why_not_done,
)
from tests.unit.launch.slurm.run_folders import begun, checkpoint, ended, make_run, rank_end, write_plan


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def decide(run: Path, *, is_ended_from_outside: bool = False) -> RestartDecision:
    return decide_restart(run, 3, "7", is_ended_from_outside=is_ended_from_outside)


def stopped(run: Path, step: int, kind: StopKind, reason: str = "the reason") -> None:
    ask_to_stop(run, reason, kind)
    note_stopped(run, step, reason)


def test_done_is_what_the_marker_says_whatever_the_codes(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 1, 1)
    DoneMarker(run).write(step=40, seconds=1.0)
    decision = decide(run)
    assert (decision.exit_status, decision.goes_on, decision.step, decision.cause) == ("done", False, 40, Cause.DONE)


def test_good_codes_without_a_marker_are_not_done(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 0, 0)
    rank_end(run, 1, 0)
    decision = decide(run)
    assert (decision.exit_status, decision.goes_on) == ("failed", True)


@pytest.mark.parametrize(
    ("kind", "goes_on", "cause"),
    [
        (StopKind.SCHEDULER, True, Cause.STOPPED),
        (StopKind.SIGNAL, True, Cause.STOPPED),
        (StopKind.USER, False, Cause.STOPPED_BY_USER),
    ],
)
def test_who_asked_to_stop_decides_whether_it_goes_on(run: Path, kind: StopKind, goes_on: bool, cause: Cause) -> None:
    begun(run, 0)
    checkpoint(run, 12)
    stopped(run, 12, kind, "time limit")
    decision = decide(run)
    assert (decision.exit_status, decision.goes_on, decision.step, decision.cause) == ("stopped", goes_on, 12, cause)
    assert decision.reason == "saved at step 12: time limit" + "; goes on in another attempt" * goes_on


def test_a_file_that_a_person_touched_stops_the_run(run: Path) -> None:
    begun(run, 0)
    checkpoint(run, 12)
    stop.ask_nothing(run)
    (run / "stop").touch()
    note_stopped(run, 12, stop.BY_HAND)
    assert not decide(run).goes_on


def test_a_crash_with_progress_goes_on(run: Path) -> None:
    checkpoint(run, 10)
    begun(run, 10)
    checkpoint(run, 20)
    rank_end(run, 1, 1, reason="ValueError: x")
    decision = decide(run)
    assert decision.goes_on
    assert decision.reason == "rank 1 on n2: exit code 1: ValueError: x; goes on from step 20"


def test_a_crash_loop_ends_and_says_why(run: Path) -> None:
    checkpoint(run, 10)
    for number in (1, 2):
        attempt = begun(run, 10)
        rank_end(run, 1, 1, attempt=attempt, reason="ValueError: x")
        decision = decide(run)
        assert decision.goes_on
        assert decision.reason.endswith(f"try {number} of 3 at step 10")
        ended(run, attempt, "failed")
    rank_end(run, 1, 1, attempt=begun(run, 10), reason="ValueError: x")
    decision = decide(run)
    assert not decision.goes_on
    assert decision.reason == (
        "3 attempts began at step 10 and none saved a newer checkpoint; "
        "the last: rank 1 on n2: exit code 1: ValueError: x"
    )


@pytest.mark.parametrize("exit_status", ["stopped", "bad nodes"])
def test_attempts_that_were_asked_to_stop_are_no_tries(run: Path, exit_status: str) -> None:
    for _ in range(4):
        ended(run, begun(run, 10), exit_status)
    checkpoint(run, 10)
    rank_end(run, 0, 1, attempt=begun(run, 10))
    assert decide(run).goes_on
    assert tries_at(attempts_since_submission(read_history(run)), 10) == 1


def test_attempts_cut_off_from_outside_are_tries(run: Path) -> None:
    for _ in range(3):
        begun(run, 0)
    decision = decide(run)
    assert not decision.goes_on
    assert "without a word from any rank" in decision.reason


@pytest.mark.parametrize(
    ("cause", "goes_on"),
    [
        (Cause.USER_ERROR, False),
        (Cause.DIVERGED, False),
        (Cause.DISK_FULL, False),
        (Cause.FOLDER_LOCKED, True),  # of a lost node: it passes
        (Cause.TRANSIENT, True),
        (Cause.NOT_STARTED, True),
        (Cause.HUNG, True),
        (Cause.WAITING, True),
        (Cause.SIGNAL, True),
        (Cause.EXIT, True),
    ],
    ids=lambda value: value.value if isinstance(value, Cause) else "",
)
def test_only_what_the_user_must_mend_ends_the_job_at_once(run: Path, cause: Cause, goes_on: bool) -> None:
    begun(run, 0)
    checkpoint(run, 10)
    rank_end(run, 0, 1, cause=cause)
    decision = decide(run)
    assert (decision.goes_on, decision.cause) == (goes_on, cause)
    assert decision.reason.endswith("; goes on from step 10" if goes_on else "; a retry would not help")


def test_a_passing_fault_is_retried_within_the_budget(run: Path) -> None:
    for number in range(3):
        rank_end(run, 0, 74, attempt=begun(run, 0), reason="the disk answers EIO")
        assert decide(run).goes_on is (number < 2)


def test_the_cause_is_told_not_its_consequences(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 0, 143, time=1.0)
    rank_end(run, 1, 1, time=2.0, reason="MemoryError")
    rank_end(run, 2, 1, time=3.0, reason="Connection closed by peer")
    assert decide(run).reason.startswith("rank 1 on n2: exit code 1: MemoryError")


def test_what_the_user_must_mend_is_nobodys_consequence(run: Path) -> None:
    """The rank that waited for it notices a lost connection, and may be gone earlier."""
    begun(run, 0)
    rank_end(run, 0, 74, time=1.0)
    rank_end(run, 1, 2, time=2.0)
    rank_end(run, 2, 137, time=1.5)
    assert decide(run).cause is Cause.USER_ERROR


def test_a_killed_rank_is_the_cause_of_lost_connections(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 0, 1, time=1.0, reason="Connection closed by peer")
    rank_end(run, 1, 137, time=1.2)
    rank_end(run, 2, 143, time=1.1)
    assert decide(run).reason.startswith("rank 1 on n2: killed by signal 9")
    rank_end(run, 1, 137, time=9.0)
    assert decide(run).reason.startswith("rank 0 on n1: exit code 1"), "that one Slurm has killed, afterwards"


def test_of_hung_ranks_the_one_that_does_not_wait_for_others(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 0, 137, time=1.0, cause=Cause.WAITING, reason="waits for other ranks in all_reduce (x.py:1)")
    rank_end(run, 1, 137, time=2.0, cause=Cause.HUNG, reason="stands in read (y.py:2)")
    assert decide(run).reason.startswith("rank 1 on n2: hung: stands in read")


def test_records_of_an_earlier_attempt_do_not_count(run: Path) -> None:
    begun(run, 0)
    begun(run, 0)
    rank_end(run, 1, 2, attempt=0)
    assert decide(run).goes_on


def test_records_of_an_older_version_can_be_read(run: Path) -> None:
    (run / "status").mkdir()
    old = {"rank": 1, "host": "n2", "life": 0, "code": 2, "time": 1.0, "why": "", "last_words": "error: no such file"}
    (run / "status/exit_rank_1.json").write_text(json.dumps(old))
    (run / HISTORY).write_text(
        '{"event": "submitted", "job": "7", "life": -1, "step": -1, "nodes": "", "outcome": "", "why": "", '
        '"by_user": true, "time": 1.0}\n'
        '{"event": "begin", "job": "7", "life": 0, "step": 0, "nodes": "n1", "outcome": "", "why": "", '
        '"by_user": false, "time": 2.0}\n'
        '{"event": "rest", "job": "7", "life": -1, "step": -1, "nodes": "", "outcome": "", "why": "stop", '
        '"by_user": false, "time": 3.0}\n'
    )
    decision = decide(run)
    assert (decision.goes_on, decision.cause) == (False, Cause.USER_ERROR)
    assert "no such file" in decision.reason
    assert is_stopped_by_user(read_history(run), "7")


def test_a_job_that_is_ended_from_outside_does_not_requeue_itself(run: Path) -> None:
    begun(run, 0)
    rank_end(run, 0, 143)
    decision = decide(run, is_ended_from_outside=True)
    assert (decision.exit_status, decision.goes_on) == ("failed", False)
    checkpoint(run, 12)
    stopped(run, 12, StopKind.SIGNAL)
    decision = decide(run, is_ended_from_outside=True)
    assert (decision.exit_status, decision.goes_on) == ("stopped", False)
    assert decision.reason.endswith("; ended from outside (TERM), so it does not requeue itself")


@dataclass(frozen=True)
class Story:
    """What happened in an attempt, without a word."""

    ends: tuple[tuple[int, int, float, Cause | None], ...] = ()
    """Rank, code, time, cause."""
    earlier: int = 0
    """Attempts before it that got no further."""
    saved: int = 0
    stop: StopKind | None = None
    is_done: bool = False
    is_stopped_by_user: bool = False
    is_ended_from_outside: bool = False
    words: dict[str, str] = field(default_factory=dict)


STORIES = [
    Story(),
    Story(ends=((0, 1, 1.0, None),)),
    Story(ends=((0, 1, 1.0, None),), earlier=2),
    Story(ends=((0, 1, 1.0, None),), saved=5),
    Story(ends=((0, 2, 1.0, None), (1, 143, 1.1, None))),
    Story(ends=((0, 69, 1.0, None),)),
    Story(ends=((0, 73, 1.0, None),)),
    Story(ends=((0, 74, 1.0, None), (1, 137, 1.5, None))),
    Story(ends=((0, 137, 1.0, Cause.WAITING), (1, 137, 2.0, Cause.HUNG))),
    Story(ends=((0, 127, 1.0, None),)),
    Story(stop=StopKind.SCHEDULER, saved=5),
    Story(stop=StopKind.USER, saved=5),
    Story(stop=StopKind.SIGNAL, saved=5, is_stopped_by_user=True),
    Story(stop=StopKind.SIGNAL, saved=5, is_ended_from_outside=True),
    Story(ends=((0, 1, 1.0, None),), is_stopped_by_user=True),
    Story(is_done=True),
]


def tell(folder: Path, story: Story, words: random.Random) -> tuple[str, bool, int, Cause, int | None]:
    """Play a story with messages of random words; return what was decided, and who was to blame."""

    def message() -> str:
        spoilt = ["error: ", "rest: ", "hung: ", "is training in", "is using", "waits for other ranks", "No space left"]
        return " ".join(words.choices([*spoilt, "Connection closed by peer", "", "saved at step 7", "TERM"], k=3))

    run = make_run(folder)
    for _ in range(story.earlier):
        begun(run, 0)
    attempt = begun(run, 0)
    for rank, code, time, cause in story.ends:
        rank_end(run, rank, code, attempt=attempt, time=time, cause=cause, reason=message())
    if story.saved:
        checkpoint(run, story.saved)
    if story.stop is not None:
        stopped(run, story.saved, story.stop, message())
    if story.is_done:
        DoneMarker(run).write(step=9, seconds=1.0)
    if story.is_stopped_by_user:
        add_event(run, Event(event="stop", job="7", reason=message()))
    made = decide(run, is_ended_from_outside=story.is_ended_from_outside)
    blamed = rank_to_blame(read_ends(run, attempt))
    return made.exit_status, made.goes_on, made.step, made.cause, None if blamed is None else blamed.rank


@pytest.mark.parametrize("story", STORIES, ids=range(len(STORIES)))
def test_rewording_every_message_changes_no_decision(tmp_path: Path, story: Story) -> None:
    told = {tell(tmp_path / str(seed), story, random.Random(seed)) for seed in range(10)}
    assert len(told) == 1


def test_a_command_is_done_when_every_task_ended_well(run: Path) -> None:
    begun(run, 0)
    (attempt,) = attempts_since_submission(read_history(run))
    rank_end(run, 0, 0)
    assert decide_command(run, attempt, 2).reason == "1 of 2 task(s) ended without a word"
    rank_end(run, 1, 0)
    assert decide_command(run, attempt, 2).exit_status == "done"
    rank_end(run, 1, 3, reason="no such file")
    decision = decide_command(run, attempt, 2)
    assert (decision.exit_status, decision.goes_on, decision.cause) == ("failed", False, Cause.EXIT)
    assert decision.reason == "rank 1 on n2: exit code 3: no such file"


def task_end(run: Path, number: int, code: int) -> None:
    rank_end(run, number, code)
    (run / f"status/exit_rank_{number}.json").rename(run / f"status/exit_task_{number}.json")


def test_an_array_is_done_when_every_task_ended_well(run: Path) -> None:
    write_plan(run, array=3, is_training=False)
    assert tasks_left(run, 3) == [0, 1, 2]
    task_end(run, 0, 0)
    task_end(run, 2, 1)
    assert task_codes(run) == {0: 0, 2: 1}
    assert why_not_done(run) == "array task(s) 1, 2 have not ended with code 0"
    for number in (1, 2):
        task_end(run, number, 0)
    assert why_not_done(run) == ""


def test_why_a_run_is_not_done(run: Path) -> None:
    assert why_not_done(run) == "there is no done.json"
    write_plan(run, is_training=False)
    assert why_not_done(run) == "its last attempt did not end well"
    ended(run, begun(run, 0), "failed")
    assert why_not_done(run) == "its last attempt did not end well"
    ended(run, begun(run, 0), "done")
    assert why_not_done(run) == ""


def test_a_run_without_slurm_is_done_when_its_marker_says_so(tmp_path: Path) -> None:
    assert why_not_done(tmp_path) == "there is no done.json"
    DoneMarker(tmp_path).write(step=1, seconds=1.0)
    assert why_not_done(tmp_path) == ""
