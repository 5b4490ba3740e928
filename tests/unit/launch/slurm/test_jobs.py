"""What we make of the answers of squeue, sacct and scontrol. tests/slurm asks a real one."""

from __future__ import annotations

import pytest

from cclm.errors import CclmError
from launch.slurm import jobs
from tests.unit.launch.slurm.fake_slurm import FakeSlurm


def test_one_question_for_all_jobs(fake_slurm: FakeSlurm) -> None:
    fake_slurm.queue(
        ("9", "RUNNING", "n[1-2]", "/runs/a/slurm/job.sh", "None"),
        ("12_3", "PENDING", "", "/runs/b/slurm/job.sh", "JobArrayTaskLimit"),
    )
    found = jobs.ask_jobs(["12_3", "9", "12"])
    (call,) = fake_slurm.calls("squeue")
    assert call.endswith("--jobs=9,12")
    assert (found.accounts, found.silence) == ("not asked", "")
    (training,), (task,) = found.of("9"), found.of("12")
    assert (found.of("12_3"), found.of("12_4")) == ([task], [])
    assert (training.nodes, training.reason) == ("n[1-2]", "")
    assert (training.array_task, training.is_over, str(training)) == (None, False, "RUNNING")
    assert (task.array_task, task.nodes, str(task)) == (3, "", "PENDING (JobArrayTaskLimit)")


def test_nothing_to_ask(fake_slurm: FakeSlurm) -> None:
    assert jobs.ask_jobs([]) == jobs.JobsNow()


def test_reasons_keep_their_bars(fake_slurm: FakeSlurm) -> None:
    fake_slurm.queue(("7", "PENDING", "", "job.sh", "(Nodes a|b are down)"))
    (job,) = jobs.ask_queue("--me")
    assert job.reason == "(Nodes a|b are down)"


def test_the_accounts_are_asked_for_what_squeue_forgot(fake_slurm: FakeSlurm) -> None:
    fake_slurm.queue(("9", "RUNNING", "n1"))
    fake_slurm.program("sacct", "echo '7|CANCELLED by 1000|n[1-2]'; echo '7_[2-3]|CANCELLED|None'")
    found = jobs.ask_jobs(["7", "9"])
    assert fake_slurm.calls("sacct")[0].endswith("--jobs=7")
    (job,) = found.of("7")
    assert (job.state, job.nodes, job.is_over, found.accounts) == ("CANCELLED", "n[1-2]", True, "sacct")


@pytest.mark.parametrize("sacct", [None, "echo 'Slurm accounting storage is disabled' >&2; exit 1"])
def test_a_site_without_accounts(fake_slurm: FakeSlurm, sacct: str | None) -> None:
    fake_slurm.program("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    if sacct:
        fake_slurm.program("sacct", sacct)
    assert jobs.ask_jobs(["7"]) == jobs.JobsNow(accounts="no accounting")


def test_no_slurm_is_told_and_not_raised(fake_slurm: FakeSlurm) -> None:
    assert "expected the command squeue, got none on the PATH" in jobs.ask_jobs(["7"]).silence
    fake_slurm.program("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert "got Unable to contact slurm controller" in jobs.ask_jobs(["7"]).silence
    with pytest.raises(CclmError, match="scontrol ping"):
        jobs.ask_queue("--me")


def test_details(fake_slurm: FakeSlurm) -> None:
    fake_slurm.program(
        "scontrol", "echo 'JobId=7 JobName=a Restarts=2 Dependency=(null) TimeLimit=1-00:00:00 Reason=None'"
    )
    assert jobs.details_of("7") == {"JobId": "7", "JobName": "a", "Restarts": "2", "TimeLimit": "1-00:00:00"}
    fake_slurm.program("scontrol", "exit 1")
    assert jobs.details_of("7") == {}
