"""Stop and cancel, with a Slurm of scripts. tests/slurm asks a real one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cclm.errors import CclmError, ConfigError
from cclm.files.lock import run_lock
from cclm.run import stop as request
from cclm.run.status import DoneMarker
from launch.control import stop as stop_module
from launch.control.stop import cancel, stop, wait_until_stopped
from launch.slurm.history import Event, add_event, is_stopped_by_user, read_history
from tests.unit.launch.slurm.fake_slurm import FakeSlurm
from tests.unit.launch.slurm.run_folders import begun, checkpoint, make_run, rank_says

FAR = 4e9
"""A time that no attempt began after."""


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path, fake_slurm: FakeSlurm) -> Path:
    """A run that has saved at step 10."""
    run = make_run(tmp_path)
    checkpoint(run, 10)
    fake_slurm.obeys()
    return run


def say(said: list[str]) -> Callable[[Path, str], None]:
    return lambda run, line: said.append(line)


def asked(run: Path) -> bool:
    """Whether a person's request waits for the ranks."""
    found = request.read_request(run)
    return found is not None and (found.kind, found.reason) == (request.StopKind.USER, "a person asked")


def is_stopped(run: Path) -> bool:
    return is_stopped_by_user(read_history(run), "7")


def test_a_job_that_trains_is_asked(run: Path, fake_slurm: FakeSlurm, said: list[str]) -> None:
    fake_slurm.queue(("7", "RUNNING", "n1"))
    begun(run, 10)
    rank_says(run, 0, step=12, time=FAR)
    assert stop([run], say=say(said))
    assert asked(run)
    assert is_stopped(run)
    assert fake_slurm.calls("scancel") == ["--signal=USR1 7"]
    assert said == ["job 7 (training) is asked to save and to stop after its present step"]


def test_nobody_is_signalled_before_a_rank_has_spoken(run: Path, fake_slurm: FakeSlurm, said: list[str]) -> None:
    fake_slurm.queue(("7", "RUNNING", "n1"))
    rank_says(run, 0, step=10, time=1.0)
    begun(run, 10)
    assert stop([run], say=say(said))
    assert fake_slurm.calls("scancel") == []
    assert is_stopped(run)


def test_a_job_that_waits_is_cancelled(run: Path, fake_slurm: FakeSlurm, said: list[str]) -> None:
    fake_slurm.queue(("7", "PENDING", "", "N/A", "BeginTime"))
    assert not stop([run], say=say(said))
    assert fake_slurm.calls("scancel") == ["--state=PENDING 7"]
    assert said == [
        "job 7 was waiting and is cancelled: nothing to save; "
        f"python -m launch resume {run} goes on from step 10"
    ]  # fmt: skip
    assert is_stopped(run), "had it begun in this moment, it would have ended at once"


def test_of_a_sweep_that_waits_one_point_is_cancelled(tmp_path: Path, fake_slurm: FakeSlurm, said: list[str]) -> None:
    """`scancel --state=PENDING 7_1` would cancel all tasks that wait."""
    (run := make_run(tmp_path)).joinpath("slurm/history.jsonl").unlink()
    add_event(run, Event(event="submitted", job="7_1", by_user=True))
    fake_slurm.queue(("7_0", "PENDING"), ("7_1", "PENDING"))
    fake_slurm.obeys()
    assert not stop([run], say=say(said))
    assert fake_slurm.calls("scancel") == ["7_1"]


def test_a_job_that_begins_in_this_moment_is_asked(run: Path, fake_slurm: FakeSlurm, said: list[str]) -> None:
    fake_slurm.queue(("7", "PENDING", "", "N/A", "BeginTime"))
    fake_slurm.program("scancel", f"sed -i s/PENDING/RUNNING/ {fake_slurm.folder}/jobs")
    assert stop([run], say=say(said))
    assert asked(run)


def test_a_job_by_hand_is_found_by_its_script(run: Path, fake_slurm: FakeSlurm, said: list[str]) -> None:
    fake_slurm.queue(("7", "FAILED", "n1"), ("9", "PENDING", "", f"{run}/slurm/job.sh", "Priority"))
    assert not stop([run], say=say(said))
    assert fake_slurm.calls("scancel") == ["--state=PENDING 9"]


def test_nothing_to_stop(run: Path, fake_slurm: FakeSlurm, said: list[str]) -> None:
    fake_slurm.queue(("7", "FAILED", "n1"))
    assert not stop([run], say=say(said))
    DoneMarker(run).write(step=40, seconds=1.0)
    assert not stop([run], say=say(said))
    assert said[0].startswith("no job of it waits or runs; python -m launch resume")
    assert said[1] == "done at step 40: there is nothing to stop"
    assert not is_stopped(run)


def test_a_command_cannot_save(tmp_path: Path, fake_slurm: FakeSlurm, said: list[str]) -> None:
    run = make_run(tmp_path, is_training=False)
    fake_slurm.queue(("7", "RUNNING", "n1"))
    with pytest.raises(ConfigError, match="expected a run that trains, and can save, got a command that is running"):
        stop([run], say=say(said))
    assert not is_stopped(run)


def test_of_an_array_those_that_wait_are_cancelled(tmp_path: Path, fake_slurm: FakeSlurm, said: list[str]) -> None:
    run = make_run(tmp_path, is_training=False, array=2)
    fake_slurm.queue(("7_0", "RUNNING", "n1"), ("7_1", "PENDING"))
    fake_slurm.obeys()
    assert not stop([run], say=say(said))
    assert said == [
        "the tasks that waited are cancelled (0 done, 1 running, 0 failed, 0 waiting, 1 without a word); "
        "those that run go on to their end"
    ]


def test_a_slurm_that_does_not_answer(run: Path, fake_slurm: FakeSlurm, said: list[str]) -> None:
    fake_slurm.program("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(CclmError, match="Unable to contact slurm controller"):
        stop([run], say=say(said))
    fake_slurm.queue(("7", "PENDING"))
    fake_slurm.program("scancel", "echo 'Access/permission denied' >&2; exit 1")
    with pytest.raises(CclmError, match="Access/permission denied"):
        stop([run], say=say(said))


def test_a_local_run_is_asked_by_its_file(tmp_path: Path, said: list[str]) -> None:
    rank_says(tmp_path, 0, step=3, time=1.0)
    assert not stop([tmp_path], say=say(said))
    assert "it does not run (cut off, or ended with an error" in said[0]
    assert "there is no checkpoint: the same command again begins anew" in said[0]
    assert not (tmp_path / "stop").exists(), "it would stop the next start"
    with run_lock(tmp_path):
        assert stop([tmp_path], say=say(said))
    assert asked(tmp_path)


def test_waiting_until_it_has_stopped(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_module, "ASK_S", 0.0)
    rank_says(tmp_path, 0, step=3, time=1.0)
    with run_lock(tmp_path):
        assert not wait_until_stopped([tmp_path], 0.05, say=say(said))
        assert "not stopped after 0.05 s" in said[-1]
        timer = threading.Timer(0.1, lambda: request.note_stopped(tmp_path, 4, "a person asked"))
        timer.start()
        assert not wait_until_stopped([tmp_path], 0.3, say=say(said)), "it has saved, and still ends"
        timer.join()
    assert wait_until_stopped([tmp_path], 5.0, say=say(said))
    assert said[-1].startswith("saved at step 4: a person asked; ")


def test_a_run_that_dies_instead_has_not_stopped(run: Path, fake_slurm: FakeSlurm, said: list[str]) -> None:
    begun(run, 10)
    add_event(run, Event(event="end", job="7", attempt=0, exit_status="failed", reason="rank 0 on n1: boom"))
    fake_slurm.queue(("7", "FAILED", "n1"))
    assert not wait_until_stopped([run], 5.0, say=say(said))
    assert said == [f"rank 0 on n1: boom; python -m launch resume {run} goes on from step 10"]


def test_cancel_ends_a_job_and_the_one_that_follows(
    run: Path, fake_slurm: FakeSlurm, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job submits a successor while it is being cancelled."""
    monkeypatch.setattr(stop_module, "POLL_S", 0.01)
    fake_slurm.queue(("7", "RUNNING", "n1"))
    follows = f"echo '8|PENDING||{run}/slurm/job.sh|Priority' >> {fake_slurm.folder}/jobs"
    end = f"sed -i -E 's/RUNNING|PENDING/CANCELLED/' {fake_slurm.folder}/jobs"
    fake_slurm.program("scancel", f"{end}; case $* in 7) {follows} ;; esac")
    assert cancel([run], say=say(said))
    assert fake_slurm.calls("scancel") == ["7", "8"]
    assert said[:2] == ["job 7 cancelled (it was RUNNING)", "job 8 cancelled (it was PENDING (Priority))"]
    assert said[2] == f"stop asked by the user; python -m launch resume {run} goes on from step 10"
    assert is_stopped(run)
    assert cancel([run], say=say(said))
    assert said[-1].startswith("no job of it waits or runs; ")


def test_of_a_sweep_only_the_point_is_ended(
    tmp_path: Path, fake_slurm: FakeSlurm, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue tells of the neighbours, too."""
    monkeypatch.setattr(stop_module, "CANCEL_S", 0.1)
    (run := make_run(tmp_path)).joinpath("slurm/history.jsonl").unlink()
    add_event(run, Event(event="submitted", job="7_1", by_user=True))
    fake_slurm.queue(("7_0", "RUNNING", "n1"), ("7_1", "RUNNING", "n1"))
    fake_slurm.program("scancel", "")
    assert stop([run], say=say(said))
    assert said == ["job 7_1 (beginning) is asked to save and to stop after its present step"]
    assert is_stopped_by_user(read_history(run), "7_1")
    cancel([run], say=say(said))
    assert fake_slurm.calls("scancel") == ["7_1"]


def test_cancel_says_what_has_not_ended(
    run: Path, fake_slurm: FakeSlurm, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_module, "CANCEL_S", 0.1)
    fake_slurm.queue(("7", "COMPLETING", "n1"))
    assert not cancel([run], say=say(said))
    assert said[-1].startswith("COMPLETING; ")


def test_a_local_run_has_nothing_to_cancel(tmp_path: Path, said: list[str]) -> None:
    rank_says(tmp_path, 0, step=3, time=1.0)
    with pytest.raises(ConfigError, match="expected a run with a job, got one without Slurm"):
        cancel([tmp_path], say=say(said))


def test_a_job_by_hand_of_a_run_that_slurm_refused_before(run: Path, fake_slurm: FakeSlurm, said: list[str]) -> None:
    (run / "slurm/history.jsonl").unlink()
    fake_slurm.queue()
    assert not stop([run], say=say(said))
    assert said[0].startswith("no job of it waits or runs; ")
    fake_slurm.queue(("9", "PENDING", "", f"{run}/slurm/job.sh", "Priority"))
    assert cancel([run], say=say(said))
    assert fake_slurm.calls("scancel") == ["9"]
