"""What `status` prints."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.slurm.history import Event, add_event
from tests.unit.launch.slurm.fake_slurm import FakeSlurm
from tests.unit.launch.slurm.run_folders import begun, checkpoint, log_lines, make_run, rank_says


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs: one under Slurm that trains, and one that was trained here and is done."""
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path).rename(tmp_path / "base")
    (tmp_path / "runs").mkdir()
    run = run.rename(tmp_path / "runs/base")
    begun(run, 0)
    checkpoint(run, 10)
    why = "saved at step 10: USR1; goes on in another attempt"
    add_event(run, Event(event="end", job="7", attempt=0, exit_status="stopped", reason=why))
    begun(run, 10)
    log_lines(run, [(step, time.time() - 10 + step, 2.5) for step in range(10, 12)], total=40)
    rank_says(run, 0, step=12, time=time.time() + 1.0)
    alone = tmp_path / "runs/alone"
    rank_says(alone, 0, step=3, time=1.0, phase="done")
    (alone / "done.json").write_text(json.dumps({"step": 3, "seconds": 1.0, "time": 2.0}))
    return tmp_path


def test_a_table(here: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    fake_slurm.queue(("7", "RUNNING", "n[1-2]"))
    assert main(["status"]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "run job state nodes phase step loss samples/s to go attempts saved last word",
        "alone - done n1 done 3 - - - - - done at step 3",
        "base 7 RUNNING n[1-2] training 12/40 2.5 4.0 28 s 2 10 saved at step 10: USR1; goes on in another attempt",
    ]


def test_a_run_that_waits_says_why(here: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    fake_slurm.queue(("7", "PENDING", "", "N/A", "BeginTime"))
    main(["status"])
    assert "  PENDING (BeginTime)  -      waiting" in capsys.readouterr().out


def test_one_run_has_a_block(here: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    fake_slurm.queue(("7", "RUNNING", "n[1-2]"))
    fake_slurm.program("scontrol", "echo 'JobId=7 Partition=gpu TimeLimit=1:00:00 Restarts=1 Dependency=(null)'")
    assert main(["status", "base"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:7] == [
        f"run         {here}/runs/base",
        "state       job 7: RUNNING on n[1-2]",
        "job         partition gpu, limit 1:00:00, Slurm's restarts 1",
        "phase       training",
        "step        12/40, loss 2.5, 4.0 samples/s, 28 s to go",
        "checkpoint  step 10",
        "last word   saved at step 10: USR1; goes on in another attempt",
    ]
    assert lines[7] == "ranks       0 on n1: training at step 12"
    assert " ".join(lines[9].split()) == "attempt job nodes began lasted from step how it ended"
    assert lines[10].endswith("stopped: saved at step 10: USR1; goes on in another attempt")
    assert lines[11].endswith("-         10  runs")


def test_json(here: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    fake_slurm.program("squeue", "echo 'Invalid job id specified' >&2; exit 1")
    assert main(["status", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["accounts"], content["slurm"]) == ("no accounting", "answers")
    assert [(run["kind"], run["state"]) for run in content["runs"]] == [("local", "done"), ("training", "forgotten")]
    assert content["runs"][1]["attempts"][0]["exit_status"] == "stopped"


def test_without_slurm(here: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    told = capsys.readouterr()
    assert "alone  -    done" in told.out
    assert "base   7    unknown" in told.out
    assert "expected the command squeue, got none on the PATH" in told.err
    assert main(["status", "alone"]) == 0
    assert capsys.readouterr().err == "", "a run without a job has no question for Slurm"


def test_broken_and_missing_folders(here: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    fake_slurm.queue()
    (here / "runs/alone/config.yaml").write_text("a: [")
    (here / "runs/base/slurm/plan.json").write_text("{")
    assert main(["status"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert "done at step 3; " in rows[0] and "broken YAML" in rows[0]
    assert "broken JSON" in rows[1]
    assert main(["status", "nowhere"]) == 2
    assert main(["status", "--root", "nowhere"]) == 0
    assert capsys.readouterr().out == f"no runs in {here}/nowhere\n"
