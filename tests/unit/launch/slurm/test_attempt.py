from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cclm.run import stop
from cclm.run.status import DoneMarker
from launch.plan.slurm_job import FIRST_PORT
from launch.slurm import attempt, jobs
from launch.slurm.attempt import find_port, main
from launch.slurm.history import (
    Event,
    add_event,
    all_attempts,
    attempts_since_submission,
    jobs_of,
    last_job,
    read_history,
)
from launch.slurm.jobs import JobNow
from tests.unit.launch.slurm.run_folders import begun, checkpoint, ended, make_run, rank_end, rank_says


def begin(run: Path) -> int:
    return main(["begin", str(run), "--job", "7", "--nodes", "n[1-2]"])


def test_an_attempt_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    checkpoint(run, 10)
    stop.ask_to_stop(run, "an old request", stop.StopKind.USER)
    rank_says(run, 0, step=9, time=1.0)
    assert begin(run) == 0
    assert stop.read_request(run) is None
    assert (run / "stop").exists(), "the old request is gone, the file is there"
    assert list((run / "status").glob("rank_*")) == [], "what ranks said was said in another attempt"
    (found,) = attempts_since_submission(read_history(run))
    assert (found.first_step, found.nodes, found.job, found.exit_status) == (10, "n[1-2]", "7", "")
    told = capsys.readouterr()
    assert told.out == "0\n"
    assert "attempt 0 of run: job 7 on n[1-2], from step 10" in told.err


def test_a_done_run_has_no_further_attempt(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    DoneMarker(run).write(step=40, seconds=1.0)
    assert begin(run) == 3
    assert attempts_since_submission(read_history(run)) == []


def test_cut_off_attempts_without_progress_are_not_repeated_for_ever(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert [begin(run) for _ in range(4)] == [0, 0, 0, 1]
    checkpoint(run, 10)
    assert begin(run) == 0


def test_a_person_may_try_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    assert [begin(run) for _ in range(4)] == [0, 0, 0, 1]
    add_event(run, Event(event="submitted", job="8", by_user=True))
    assert begin(run) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3", "attempts are counted on"


def test_room_is_kept_for_the_end(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    begin(run)
    assert (run / "slurm/reserve").stat().st_size == 2**16
    main(["end", str(run), "--job", "7", "--code", "1"])
    assert not (run / "slurm/reserve").exists()


def test_a_request_is_written_for_the_ranks(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for kind in ("scheduler", "signal"):
        assert main(["ask", str(run), "--kind", kind, "--reason", "USR1"]) == 0
        asked = stop.read_request(run)
        assert asked is not None
        assert (asked.kind.value, asked.reason) == (kind, "USR1")


@pytest.mark.parametrize(("codes", "answer"), [((0, 0), 0), ((0, 1), 1)], ids=["all ended well", "one failed"])
def test_the_end_of_a_command(tmp_path: Path, codes: tuple[int, int], answer: int) -> None:
    run = make_run(tmp_path, is_training=False)
    begun(run, 0)
    for rank, code in enumerate(codes):
        rank_end(run, rank, code)
    assert main(["end", str(run), "--job", "7", "--code", "0"]) == answer
    assert attempts_since_submission(read_history(run))[0].exit_status == ("failed" if answer else "done")


def test_the_end_of_an_attempt_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    begun(run, 0)
    rank_end(run, 0, 1, reason="boom")
    assert main(["end", str(run), "--job", "7", "--code", "143"]) == 75
    assert "attempt 0 failed (srun's code 143): rank 0 on n1: exit code 1: boom; try 1 of 3" in capsys.readouterr().err


def test_a_job_that_waits_for_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    submitted: list[tuple[str, ...]] = []
    monkeypatch.setattr(attempt, "submit_script", lambda *words: submitted.append(words) or "9")
    known = [JobNow(job="7", state="RUNNING"), JobNow(job="8", state="FAILED")]
    monkeypatch.setattr(jobs, "ask_queue", lambda *which: known)
    question = ["after", str(run), "--other", str(other)]
    assert main(question) == 1, "it goes on as another job"
    assert submitted == [(f"{run}/slurm/job.sh", "--dependency=afterany:7")]
    assert last_job(read_history(run)) == "9"
    add_event(other, Event(event="submitted", job="8"))
    known.pop(0)
    assert main(question) == 1
    assert f"{other} is not done: there is no done.json" in capsys.readouterr().err
    DoneMarker(other).write(step=1, seconds=1.0)
    assert main(question) == 0
    assert len(submitted) == 1


@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_job_that_is_being_ended_does_not_come_back_by_itself(tmp_path: Path, is_stopped: bool) -> None:
    run = make_run(tmp_path)
    begun(run, 0)
    if is_stopped:
        checkpoint(run, 12)
        stop.note_stopped(run, 12, "SIGTERM")
    assert main(["end", str(run), "--job", "7", "--code", "143", "--ended"]) == (0 if is_stopped else 1)
    assert attempts_since_submission(read_history(run))[0].reason.endswith(
        "; ended from outside (TERM), so it does not requeue itself"
    )


def ask_to_end(run: Path, job: str = "7") -> None:
    add_event(run, Event(event="stop", job=job))


def test_a_run_stopped_by_the_user_has_no_further_attempt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    ask_to_end(run)
    assert begin(run) == 3
    assert (
        f"stopped by the user, so it does not begin; to go on: python -m launch resume {run}" in capsys.readouterr().err
    )
    assert attempts_since_submission(read_history(run)) == []
    add_event(run, Event(event="submitted", job="8", reason="after job 7"))
    assert main(["begin", str(run), "--job", "8", "--nodes", "n1"]) == 3, "a job that follows is the same run"
    assert main(["begin", str(run), "--job", "9", "--nodes", "n1"]) == 0, "somebody has submitted the script by hand"
    add_event(run, Event(event="submitted", job="10", by_user=True))
    assert main(["begin", str(run), "--job", "10", "--nodes", "n1"]) == 0


def test_an_attempt_that_was_asked_to_stop_does_not_go_on_even_if_it_crashed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    begun(run, 0)
    checkpoint(run, 12)
    ask_to_end(run)
    rank_end(run, 0, 1, reason="boom")
    assert main(["end", str(run), "--job", "7", "--code", "1"]) == 1
    assert (
        attempts_since_submission(read_history(run))[0].reason == "rank 0 on n1: exit code 1: boom; stopped by the user"
    )


def test_a_request_to_stop_that_the_ranks_learned_by_signal_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    begun(run, 0)
    checkpoint(run, 12)
    ask_to_end(run)
    stop.note_stopped(run, 12, "SIGUSR1")
    assert main(["end", str(run), "--job", "7", "--code", "0"]) == 0
    assert attempts_since_submission(read_history(run))[0].reason == "saved at step 12: SIGUSR1; stopped by the user"


def test_all_attempts_and_those_that_share_a_budget(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    begun(run, 0)
    ended(run, 0, "failed")
    add_event(run, Event(event="submitted", job="8", by_user=True))
    begun(run, 0)
    history = read_history(run)
    assert [found.number for found in attempts_since_submission(history)] == [1]
    assert [(found.number, found.exit_status, found.ended is None) for found in all_attempts(history)] == [
        (0, "failed", False),
        (1, "", True),
    ]
    assert jobs_of(history) == ["7", "8"]


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with (run / "slurm/history.jsonl").open("a") as file:
        file.write('{"event": "begin", "jo')
    assert last_job(read_history(run)) == "7"
    assert len(read_history(run)) == 1
    add_event(run, Event(event="submitted", job="8"))
    assert [event.job for event in read_history(run)] == ["7", "8"], "the next line does not drown in the half one"
    add_event(run, Event(event="submitted", job="9"))
    assert all((run / "slurm/history.jsonl").read_text().splitlines()), "no empty lines for other readers"


def test_ports_differ_by_job_and_avoid_those_in_use() -> None:
    assert find_port(3) >= FIRST_PORT + 48
    assert find_port(3) != find_port(4)
    with socket.socket() as taken:
        port = find_port(5)
        taken.bind(("", port))
        taken.listen()
        assert find_port(5) != port


def test_a_second_job_of_the_same_script_leaves_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody has submitted it by hand once more: nothing of the run that trains is cleared."""
    run = make_run(tmp_path)
    assert begin(run) == 0
    stop.ask_to_stop(run, "a person asked", stop.StopKind.USER)
    known = [JobNow(job="7", state="RUNNING"), JobNow(job="9", state="RUNNING", script=f"{run}/slurm/job.sh")]
    monkeypatch.setattr(jobs, "ask_queue", lambda *which: known)
    second = ["begin", str(run), "--job", "9", "--nodes", "n3"]
    assert main(second) == 1
    assert "job 7 runs in this folder" in capsys.readouterr().err
    assert stop.read_request(run) is not None
    known.pop(0)
    assert main(second) == 0, "the first is gone without a word: this one goes on"
