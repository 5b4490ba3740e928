"""What is said of a run, given its folder and what Slurm answered."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

import pytest

from cclm.errors import CclmError
from cclm.files.lock import run_lock
from cclm.run import stop
from cclm.run.causes import Cause
from cclm.run.status import DoneMarker, RankStatus, note_end
from launch.slurm.history import HISTORY, Event, add_event
from launch.slurm.jobs import JobNow, JobsNow
from launch.watch.run_folder import read_folder
from launch.watch.status import RunNow, look_at, run_now
from launch.watch.status_text import as_block, as_table
from tests.unit.launch.slurm.fake_slurm import FakeSlurm
from tests.unit.launch.slurm.run_folders import begun, checkpoint, log_lines, make_run, rank_says, write_plan

LONG_AGO, NOW = 1e9, 2e9


def look(run: Path, *jobs: JobNow, silence: str = "", now: float = NOW) -> RunNow:
    return run_now(read_folder(run, now=now), JobsNow(jobs=jobs, silence=silence))


def event(
    run: Path, name: str, *, attempt: int = 0, exit_status: str = "", reason: str = "", time: float = NOW
) -> None:
    values = {"attempt": attempt, "exit_status": exit_status, "reason": reason, "time": time, "nodes": "n[1-2]"}
    add_event(run, Event(event=name, job="7", **values))  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Attempt 0 saved at step 10 and was requeued."""
    run = make_run(tmp_path)
    begun(run, 0)
    checkpoint(run, 10)
    event(run, "end", exit_status="stopped", reason="saved at step 10: USR1; goes on in another attempt")
    log_lines(run, [(step, NOW - 100 + step, 2.5) for step in range(10)], total=40)
    return run


def test_a_job_that_trains(run: Path) -> None:
    event(run, "begin", attempt=1, time=NOW - 50)
    rank_says(run, 0, step=12, time=NOW - 2)
    found = look(run, JobNow(job="7", state="RUNNING", nodes="n[1-2]"))
    assert (found.job, found.state, found.nodes, found.phase) == ("7", "RUNNING", "n[1-2]", "training")
    assert (found.progress.step, found.progress.total_steps, found.progress.checkpoint_step) == (12, 40, 10)
    assert found.last_word == "saved at step 10: USR1; goes on in another attempt"
    assert (len(found.attempts), found.silence, found.may_go_on) == (2, "", True)


@pytest.mark.parametrize(
    ("began_s", "said_s", "sentence"),
    [
        (2400, 2390, "rank 0 silent for 39 min"),
        (2400, 2500, "no word from any rank for 40 min, since attempt 1 began"),
        (300, 2500, ""),
        (2400, 100, ""),
    ],
    ids=["silent", "never spoke", "still starting", "spoke lately"],
)
def test_silence_is_told(run: Path, began_s: float, said_s: float, sentence: str) -> None:
    event(run, "begin", attempt=1, time=NOW - began_s)
    rank_says(run, 0, step=12, time=NOW - said_s)
    found = look(run, JobNow(job="7", state="RUNNING", nodes="n[1-2]"))
    assert found.silence == sentence
    assert found.phase == ("starting" if said_s > began_s else "training")


def test_a_slow_run_is_not_called_silent(run: Path) -> None:
    log_lines(run, [(step, NOW - 10000 + 100 * step, 2.5) for step in range(10)])
    event(run, "begin", attempt=1, time=NOW - 1000)
    rank_says(run, 0, step=12, time=NOW - 400)
    assert look(run, JobNow(job="7", state="RUNNING")).silence == ""
    rank_says(run, 0, step=12, time=NOW - 600)
    assert look(run, JobNow(job="7", state="RUNNING")).silence == "rank 0 silent for 10 min"


def test_a_job_that_waits(run: Path) -> None:
    found = look(run, JobNow(job="7", state="PENDING", reason="BeginTime"))
    assert (found.state, found.reason, found.phase, found.nodes) == ("PENDING", "BeginTime", "waiting", "")
    assert found.may_go_on


def test_a_job_whose_attempt_was_cut_off(run: Path) -> None:
    event(run, "begin", attempt=1)
    found = look(run, JobNow(job="7", state="NODE_FAIL", nodes="n[1-2]"))
    assert (found.phase, found.last_word, found.may_go_on) == ("cut off", "attempt 1 was cut off", False)


def test_a_job_that_slurm_forgot(run: Path) -> None:
    found = look(run)
    assert (found.state, found.phase, found.may_go_on) == ("forgotten", "stopped", False)


def test_a_slurm_that_does_not_answer(run: Path) -> None:
    found = look(run, silence="the controller is down")
    assert (found.state, found.reason) == ("unknown", "the controller is down")
    assert found.may_go_on, "nobody said that it is over"


def test_the_newest_job_that_lives_is_the_runs(run: Path) -> None:
    add_event(run, Event(event="submitted", job="8", reason="after job 7"))
    running = JobNow(job="7", state="RUNNING", nodes="n1")
    assert look(run, running).job == "7"
    assert look(run, running, JobNow(job="8", state="PENDING")).job == "8"
    assert look(run).job == "8"


def test_a_request_of_the_user_is_told(run: Path) -> None:
    event(run, "stop")
    assert look(run).last_word == "saved at step 10: USR1; goes on in another attempt; stop asked by the user"
    add_event(run, Event(event="submitted", job="8", by_user=True))
    assert "user" not in look(run).last_word


def test_an_array(tmp_path: Path) -> None:
    run = make_run(tmp_path, array=4, is_training=False)
    found = look(run, JobNow(job="7_1", state="PENDING"), JobNow(job="7_0", state="RUNNING", nodes="n1"))
    assert (found.kind, found.state, found.nodes, found.phase) == ("array", "RUNNING", "n1", "running")
    assert str(found.array_tasks) == "0 done, 1 running, 0 failed, 1 waiting, 2 without a word"
    assert found.task_may_go_on(1)
    assert not found.task_may_go_on(2)
    over = look(run, JobNow(job="7_0", state="COMPLETED"), JobNow(job="7_1", state="FAILED"))
    assert (over.state, over.phase, over.may_go_on) == ("FAILED", "failed", False)


def test_a_command(tmp_path: Path) -> None:
    run = make_run(tmp_path, is_training=False)
    assert look(run, JobNow(job="7", state="COMPLETED")).phase == "never began"
    begun(run, 0)
    assert look(run, JobNow(job="7", state="RUNNING")).phase == "running"


@contextmanager
def nobody() -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("silent_s", "is_locked", "state", "last_word"),
    [
        (1000.0, True, "running", ""),
        (3.0, False, "running", ""),
        (1000.0, False, "not running", "cut off, or ended with an error; last word 16 min ago"),
    ],
    ids=["locked", "speaks", "neither"],
)
def test_a_run_without_slurm(tmp_path: Path, silent_s: float, is_locked: bool, state: str, last_word: str) -> None:
    rank_says(tmp_path, 0, step=5, time=NOW - silent_s)
    with run_lock(tmp_path) if is_locked else nobody():
        found = look(tmp_path)
    assert (found.kind, found.job, found.state, found.last_word) == ("local", "", state, last_word)
    assert found.phase == ("training" if state == "running" else state)
    assert found.silence == ("rank 0 silent for 16 min" if is_locked else "")
    assert found.nodes == "n1"


def test_a_local_run_that_ended(tmp_path: Path) -> None:
    rank_says(tmp_path, 0, step=5, time=NOW - 1, phase="stopped")
    stop.note_stopped(tmp_path, 5, "lunch")
    assert (look(tmp_path).state, look(tmp_path).last_word) == ("stopped", "saved at step 5: lunch")
    DoneMarker(tmp_path).write(step=9, seconds=1.0)
    found = look(tmp_path)
    assert (found.state, found.last_word, found.may_go_on) == ("done", "done at step 9", False)


def test_a_submitted_run_that_goes_on_without_slurm(run: Path) -> None:
    rank_says(run, 0, step=12, time=NOW)
    with run_lock(run):
        assert look(run, JobNow(job="7", state="CANCELLED")).state == "running"
        assert look(run, JobNow(job="7", state="RUNNING")).kind == "training"


def test_a_note_of_an_earlier_start_says_nothing_of_this_one(tmp_path: Path) -> None:
    """Saved and stopped at step 16, started again by another program, killed at step 40."""
    stop.note_stopped(tmp_path, 16, "SIGTERM")
    stopped = stop.read_stopped(tmp_path)
    assert stopped is not None
    rank_says(tmp_path, 0, step=40, time=stopped.time + 60)
    found = look(tmp_path, now=stopped.time + 1000)
    assert (found.state, found.progress.step) == ("not running", 40)
    assert "16" not in found.last_word


def test_a_local_run_that_said_why_it_ended(tmp_path: Path) -> None:
    RankStatus(tmp_path, 0).write(5, "training")
    note_end(tmp_path, 0, Cause.DISK_FULL, "no room for the checkpoint")
    found = look(tmp_path, now=time.time())
    assert (found.state, found.last_word) == ("not running", "disk full: no room for the checkpoint")


def test_the_block_of_a_run_names_ranks_that_keep_the_others_waiting(tmp_path: Path) -> None:
    rank_says(tmp_path, 0, step=12, time=NOW - 1)
    values = {"speed/step_s": 1.0, "speed/data_slowest_rank": 0, "speed/data_slowest_s": 0.4}
    line = {"step": 11, "time": NOW - 1, "values": {**values, "speed/data_slowest_ratio": 1.8}}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
    assert "slow ranks  rank 0 on n1: 1.8 x the median in data (40% of a step)" in as_block(look(tmp_path), {})


def test_one_broken_line_hides_nothing(tmp_path: Path) -> None:
    rank_says(tmp_path, 0, step=12, time=NOW - 1)
    log_lines(tmp_path, [(step, NOW - 100 + step, 2.5) for step in range(10)], total=40)
    log = tmp_path / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines[:5], '{"step": 4, "val\n', *lines[5:]]))
    found = look(tmp_path)
    assert (found.state, found.progress.step, found.progress.loss) == ("running", 12, 2.5)
    table = as_table([found], {}, tmp_path.parent)
    assert table.endswith("1 line(s) of log.jsonl cannot be read")


def test_one_broken_folder_does_not_hide_the_others(run: Path, tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.queue(("7", "COMPLETED", "n1"))
    broken, without_plan = tmp_path / "broken", tmp_path / "without_plan"
    rank_says(broken, 0, step=1, time=1.0)
    (broken / "slurm").mkdir()
    (broken / "slurm/plan.json").write_text("{")
    (without_plan / HISTORY).parent.mkdir(parents=True)
    event(without_plan, "begin")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "stopped.json").write_text("[1]")
    found, unreadable, jobs = look_at([run, broken, without_plan, foreign])
    assert "stopped.json: expected a JSON file, got broken JSON: no mapping" in unreadable[foreign]
    assert [item.run_folder for item in found] == [run]
    assert "broken JSON" in unreadable[broken]
    assert "expected slurm/plan.json beside slurm/history.jsonl, got none" in unreadable[without_plan]
    assert len(fake_slurm.calls("squeue")) == 1
    assert jobs.silence == ""
    write_plan(without_plan)
    assert look(without_plan).phase == "cut off"
    with pytest.raises(CclmError):
        read_folder(broken)


def test_a_submission_that_slurm_refused_is_no_run_that_died(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / HISTORY).unlink()
    found = look(run)
    assert (found.state, found.may_go_on) == ("not submitted", False)
    assert found.last_word == "planned for Slurm, but no job of it has begun: submit it again"


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_process_of_this_machine_that_is_gone_does_not_run(tmp_path: Path, is_alive: bool) -> None:
    """Its last words are as fresh as those of one that trains, on a file system whose locks tell nothing."""
    run, child = tmp_path / "run", subprocess.Popen(["sleep", "60"])
    rank_says(run, 0, step=12, time=NOW - 3)
    status = run / "status/rank_0.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "host": gethostname(), "pid": child.pid}))
    if not is_alive:
        child.kill()
        child.wait()
    found = look(run)
    child.kill()
    child.wait()
    assert found.state == ("running" if is_alive else "not running")
