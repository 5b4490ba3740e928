"""`stop`, `cancel`, `resume` and `drill` as commands: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cclm.files.lock import run_lock
from cclm.run.stop import read_request
from launch.__main__ import main
from launch.control import drill
from launch.control.drill import Drill, Station
from launch.slurm.history import Event, add_event, is_stopped_by_user, read_history
from tests.unit.launch.slurm.fake_slurm import FakeSlurm
from tests.unit.launch.slurm.run_folders import make_run, rank_says, write_plan


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_slurm: FakeSlurm) -> Path:
    """A command submitted as job 7, which waits."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cclm").mkdir()
    fake_slurm.obeys()
    fake_slurm.queue()
    fake_slurm.program("sbatch", 'case "$*" in *--parsable*) echo 7 ;; *) echo "starts at noon" >&2 ;; esac')
    assert main(["submit", "--run-folder", "runs/a", "--", "true"]) == 0
    fake_slurm.queue(("7", "PENDING", "", "N/A", "Priority"))
    return tmp_path / "runs/a"


def test_stop(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "a", "--wait", "5"]) == 0
    assert "launch: job 7 was waiting and is cancelled: nothing to save; " in capsys.readouterr().err
    assert is_stopped_by_user(read_history(run), "7")


def test_stop_that_takes_too_long(tmp_path: Path) -> None:
    rank_says(tmp_path / "run", 0, step=3, time=1.0)
    with run_lock(tmp_path / "run"):
        assert main(["stop", str(tmp_path / "run")]) == 0, "asked, and not waited for"
        assert main(["stop", str(tmp_path / "run"), "--wait", "0.1"]) == 1


def test_cancel(run: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cancel", "a"]) == 0
    assert f"python -m launch resume {run} begins it anew" in capsys.readouterr().err
    assert fake_slurm.calls("scancel") == ["7"]


def a_sweep(folder: Path, count: int) -> Path:
    """Points whose jobs are the tasks of array 7."""
    for number in range(count):
        (run := make_run(folder)).joinpath("slurm/history.jsonl").unlink()
        add_event(run, Event(event="submitted", job=f"7_{number}", by_user=True))
        (folder / "sweep/points").mkdir(parents=True, exist_ok=True)
        run.rename(folder / f"sweep/points/{number}")
        write_plan(folder / f"sweep/points/{number}")
    return folder / "sweep"


def test_a_whole_sweep(tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = a_sweep(tmp_path, 2)
    fake_slurm.queue(("7_0", "PENDING"), ("7_1", "PENDING"))
    fake_slurm.obeys()
    assert main(["status", str(sweep)]) == 0
    assert capsys.readouterr().out.count("PENDING") == 2
    assert main(["stop", str(sweep), "--wait", "5"]) == 0
    assert fake_slurm.calls("scancel") == ["7_0 7_1"], "--state would take the whole array that waits"
    told = capsys.readouterr().err
    assert "launch: 1: job 7_1 was waiting and is cancelled: nothing to save" in told
    assert told.endswith("launch: none of 2 runs is asked to save\n")
    assert main(["cancel", str(sweep)]) == 0
    assert capsys.readouterr().err == ""
    script = f"{sweep}/points/1/slurm/job.sh"
    fake_slurm.queue(("7_0", "CANCELLED"), ("7_1", "CANCELLED"), ("9", "PENDING", "", script, "Priority"))
    assert main(["cancel", str(sweep)]) == 0
    assert "launch: 1: job 9 cancelled" in capsys.readouterr().err, "by hand"


def test_many_points_cost_a_few_questions(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    """Half of them wait, half of them train."""
    count = 40
    sweep = a_sweep(tmp_path, count)
    running = range(0, count, 2)
    fake_slurm.queue(*((f"7_{number}", "RUNNING" if number in running else "PENDING") for number in range(count)))
    fake_slurm.program(
        "scancel", f"case $* in *--signal*) ;; *) sed -i s/PENDING/CANCELLED/ {fake_slurm.folder}/jobs ;; esac"
    )
    for number in running:
        rank_says(sweep / f"points/{number}", 0, step=3, time=4e9)
    assert main(["stop", str(sweep)]) == 0
    waited, signalled = fake_slurm.calls("scancel")
    assert waited.split() == [f"7_{number}" for number in range(1, count, 2)]
    assert signalled.split() == ["--signal=USR1", *(f"7_{number}" for number in running)]
    assert len(fake_slurm.calls("squeue")) <= 4
    for number in range(count):
        point = sweep / f"points/{number}"
        assert is_stopped_by_user(read_history(point), f"7_{number}")
        assert (read_request(point) is not None) is (number in running)


def test_resume(run: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["resume", "a"]) == 2
    assert "expected a run without a job, got job 7 is" in capsys.readouterr().err
    fake_slurm.queue(("7", "FAILED", "n1"))
    assert main(["resume", "a", "--nodes", "3", "--save-s", "30"]) == 0
    told = capsys.readouterr()
    assert told.out == "7\n"
    assert told.err.splitlines()[-1] == f"launch: log: {run}/logs/slurm.log"
    directives = json.loads((run / "slurm/plan.json").read_text())["directives"]
    assert (directives["nodes"], directives["signal"]) == ("3", "B:USR1@30")


@pytest.mark.parametrize("is_good", [True, False])
def test_drill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_good: bool
) -> None:
    """The way through the stations is tested in test_drill.py."""
    walked = [
        Station(name="trains", seconds=1.24, found="step 3", is_good=True),
        Station(name="attempt ends", seconds=12.5, found="saved", is_good=is_good),
    ]
    rank_says(tmp_path / "run", 0, step=3, time=1.0)
    monkeypatch.setattr(Drill, "__init__", lambda self, folder, **options: None)
    monkeypatch.setattr(Drill, "stations", lambda self: iter(walked))
    monkeypatch.setattr(drill, "drillable", drill.look_at_one)
    assert main(["drill", str(tmp_path / "run")]) == (0 if is_good else 1)
    told = capsys.readouterr()
    assert [" ".join(line.split()) for line in told.out.splitlines()] == [
        "station seconds found",
        "trains 1.2 good step 3",
        f"attempt ends 12.5 {'good' if is_good else 'BAD'} saved",
        "all 13.7 good it survives a preemption"
        if is_good
        else "all 13.7 BAD it does not survive this: the last line says where it ended",
    ]
    assert told.err.splitlines()[-1] == "launch: attempt ends: saved"


def test_a_local_run_has_no_drill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rank_says(tmp_path / "run", 0, step=3, time=1.0)
    assert main(["drill", str(tmp_path / "run")]) == 2
    assert "expected a training run with a job that runs or waits, got local: not running" in capsys.readouterr().err
