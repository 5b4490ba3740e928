"""Looking after a run: one tiny run is looked at, drilled, stopped and resumed, and then ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.jobs import (
    ENVIRONMENT,
    ROOT,
    launch,
    lives,
    read_done,
    said,
    slurm,
    state,
    steps_saved,
    submit,
    tiny,
    wait,
)
from tests.tiny_run import write_corpus

STEPS = 200
"""Enough for the run to be still there when it is stopped."""
ONE_RANK = ("--nodes", "1", "--preflight", "none")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def ok(*words: str) -> str:
    told = launch(*words)
    assert told.returncode == 0, told.stderr + told.stdout
    return told.stdout


def test_a_run_that_is_looked_after(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/run"
    job = submit(tiny(corpus, run, STEPS, engine="plain"), *ONE_RANK)
    follower = subprocess.Popen(
        [sys.executable, "-m", "launch", "logs", str(run), "--follow"],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    table = ok("drill", str(run))
    assert table.splitlines()[-1].endswith("good  it survives a preemption"), said(run)
    first, second = lives(run)
    assert first.outcome == "stopped"
    assert second.first_step > 0

    (row,) = json.loads(ok("status", str(run), "--json"))["runs"]
    assert (row["job"], row["state"], row["phase"]) == (job, "RUNNING", "training")
    assert row["progress"]["total_steps"] == STEPS
    assert row["verdict"].startswith("saved at step ")
    assert " RUNNING " in ok("status", "--root", str(run.parent))

    told = launch("stop", str(run), "--wait", "60")
    assert told.returncode == 0, told.stderr
    assert lives(run)[-1].why.endswith(": a person asked")
    stopped_at = steps_saved(run)[-1]
    assert state(job) == "COMPLETED", "it rests, and is not requeued"
    assert follower.wait(timeout=30) == 0, "the run is over, so following it is"
    assert follower.communicate()[0] == said(run)

    told = launch("resume", str(run), "--nodes", "2")
    assert told.returncode == 2
    assert "expected 1 ranks (which wrote this checkpoint), got 2 node(s) × 1 = 2" in told.stderr
    again = ok("resume", str(run), "--time", "10").strip()
    assert "timelimit=00:10:00" in slurm("scontrol", "show", "job", again).lower()
    wait(lambda: read_done(run) is not None, "the end of the run", run)
    assert (lives(run)[0].first_step, read_done(run)) == (stopped_at, STEPS)
    assert launch("resume", str(run)).returncode == 2


def test_a_job_that_waits_is_cancelled(tmp_path: Path) -> None:
    run = tmp_path / "run"
    held = ("--run-folder", str(run), *ONE_RANK, "--time", "5", "--save-s", "60", "--sbatch", "hold")
    job = launch("submit", *held, "--", "true").stdout.strip()
    assert "PENDING (JobHeldUser)" in ok("status", str(run))
    told = launch("stop", str(run))
    assert f"job {job} was waiting and is cancelled: nothing to save" in told.stderr
    assert state(job) == "CANCELLED"
    again = ok("resume", str(run)).strip()
    told = launch("cancel", str(run))
    assert (told.returncode, state(again)) == (0, "CANCELLED")
    assert f"job {again} cancelled (it was PENDING (JobHeldUser))" in told.stderr
