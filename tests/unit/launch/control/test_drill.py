"""A drill, on a cluster that is played here; tests/slurm/test_runs.py has a real one."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.errors import ConfigError
from launch.control import drill
from launch.control.drill import Drill, Station, drillable, price
from launch.plan.request import Profile
from launch.plan.slurm_job import plan_job
from launch.slurm.history import Event, add_event
from tests.unit.launch.slurm.fake_slurm import FakeSlurm
from tests.unit.launch.slurm.run_folders import begun, checkpoint, make_run, rank_says
from tests.unit.launch.slurm.scripts import REQUEST

FAR = 4e9
"""A time that no attempt began after."""


class Cluster:
    """What a job does when it is asked to save, or killed."""

    def __init__(self, run: Path, slurm: FakeSlurm) -> None:
        self.run, self.slurm = run, slurm
        self.commands: list[str] = []
        self.exit_status, self.begins_at, self.goes_on = "stopped", 14, True
        self.requeues, self.runs_at_once, self.may_skip_the_queue = True, False, True

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.commands.append(" ".join(command))
        if "StartTime=now" not in command:
            self.strike()
            return subprocess.CompletedProcess(command, 0, stdout="", stderr="")
        self.next_attempt()
        code, words = (0, "") if self.may_skip_the_queue else (1, "Access/permission denied")
        return subprocess.CompletedProcess(command, code, stdout="", stderr=words)

    def strike(self) -> None:
        if self.exit_status:
            checkpoint(self.run, 14)
            words = "saved at step 14: USR1" if self.exit_status == "stopped" else "rank 0 on n1: boom"
            add_event(self.run, Event(event="end", job="7", attempt=0, exit_status=self.exit_status, reason=words))
        self.slurm.queue(("7", "PENDING" if self.requeues else "FAILED", "", "N/A", "BeginTime"))
        if self.runs_at_once:
            self.next_attempt()

    def next_attempt(self) -> None:
        self.slurm.queue(("7", "RUNNING", "n1"))
        begun(self.run, self.begins_at)
        rank_says(self.run, 0, step=self.begins_at + self.goes_on, time=FAR)


@pytest.fixture
def cluster(tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Attempt 0 of job 7 is at step 12 and has saved at step 10."""
    monkeypatch.setattr(drill, "POLL_S", 0.01)
    monkeypatch.setattr(drill, "CREDENTIAL_S", 0.0)
    run = make_run(tmp_path)
    (run / "slurm/plan.json").write_text(plan_job(replace(REQUEST, run_folder=run), Profile()).to_json())
    begun(run, 0)
    checkpoint(run, 10)
    rank_says(run, 0, step=12, time=FAR)
    fake_slurm.queue(("7", "RUNNING", "n1"))
    played = Cluster(run, fake_slurm)
    monkeypatch.setattr(drill, "ask_slurm", played)
    return played


def stations(cluster: Cluster, *, kill: bool = False, patience_s: float = 5.0) -> list[Station]:
    return list(Drill(drillable(cluster.run).run_folder, kill=kill, patience_s=patience_s).stations())


def test_a_job_that_survives(cluster: Cluster) -> None:
    found = stations(cluster)
    assert [(station.name, station.found) for station in found] == [
        ("trains", "attempt 0 is at step 12, saved at step 10"),
        ("asked to save", "scancel --batch --signal=USR1 7"),
        ("attempt ends", "saved at step 14: USR1"),
        ("waits again", "job 7 waits (BeginTime)"),
        ("start now", "scontrol update jobid=7 StartTime=now"),
        ("next attempt", "attempt 1 begins at step 14 on n[1-2]"),
        ("trains further", "step 15"),
    ]
    assert all(station.is_good for station in found)


def test_a_killed_job_that_survives(cluster: Cluster) -> None:
    cluster.exit_status, cluster.begins_at = "", 10
    found = stations(cluster, kill=True)
    assert cluster.commands[0] == "scontrol requeue 7"
    assert found[2].found == "cut off (PENDING); saved at step 10"
    assert [station.is_good for station in found] == [True] * 7


def test_a_job_that_runs_again_at_once(cluster: Cluster) -> None:
    cluster.runs_at_once = True
    found = stations(cluster)
    assert (found[3].found, found[4].found) == ("job 7 runs already", "job 7 is RUNNING")
    assert found[-1].is_good


def test_a_queue_that_may_not_be_skipped(cluster: Cluster) -> None:
    cluster.may_skip_the_queue = False
    found = stations(cluster)
    assert found[4].found == "refused (Access/permission denied): it waits its 120 s"
    assert found[-1].is_good


def spoil(cluster: Cluster, **changes: object) -> None:
    for name, value in changes.items():
        setattr(cluster, name, value)


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"exit_status": "failed"}, "attempt ends", "rank 0 on n1: boom"),
        ({"requeues": False}, "waits again", "job 7 is FAILED, stopped: saved at step 14: USR1"),
        ({"begins_at": 10}, "next attempt", "attempt 1 begins at step 10 on n[1-2], but step 14 was saved"),
        ({"goes_on": False}, "trains further", "not within 0 s"),
    ],
)
def test_a_job_that_does_not(cluster: Cluster, changes: dict[str, object], name: str, words: str) -> None:
    spoil(cluster, **changes)
    found = stations(cluster, patience_s=0.3)
    assert (found[-1].name, found[-1].found, found[-1].is_good) == (name, words, False)
    assert all(station.is_good for station in found[:-1])


def test_it_waits_for_a_step_of_this_attempt(cluster: Cluster) -> None:
    rank_says(cluster.run, 0, step=0, time=FAR)
    (only,) = stations(cluster, patience_s=0.1)
    assert (only.name, only.is_good) == ("trains", False)
    assert cluster.commands == []


def test_a_run_that_would_give_up_is_not_killed(cluster: Cluster) -> None:
    for step in (10, 10, 10):
        begun(cluster.run, step)
    rank_says(cluster.run, 0, step=12, time=FAR)
    assert stations(cluster, kill=True)[-1].found == (
        "attempt 3 of 3 that began at this step: killed before it saves, the run gives up"
    )
    assert cluster.commands == []


def test_what_cannot_be_drilled(cluster: Cluster) -> None:
    cluster.slurm.queue(("7", "FAILED", "n1"))
    with pytest.raises(ConfigError, match="a training run with a job that runs or waits, got training: FAILED"):
        drillable(cluster.run)


def test_the_price() -> None:
    assert "not a step is done again" in price(kill=False)
    assert "since the last checkpoint is done again" in price(kill=True)
