"""One tiny run is followed, looked at, stopped, resumed, and done; a job that waits. The drill is in the campaign."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.slurm.jobs import (
    ENVIRONMENT,
    PATIENCE_S,
    ROOT,
    attempts,
    launch,
    read_done,
    said,
    state,
    steps_saved,
    submit,
    tiny,
    wait,
)
from tests.tiny_run import write_corpus

STEPS = 400
"""Enough for the run to be still there when it is stopped."""
ONE_RANK = ("--nodes", "1", "--preflight", "none")


def ok(*words: str) -> str:
    told = launch(*words)
    assert told.returncode == 0, told.stderr + told.stdout
    return told.stdout


def test_a_run_that_is_looked_after(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    corpus, run = write_corpus(tmp_path / "corpus"), tmp_path / "runs/run"
    job = submit(tiny(corpus, run, STEPS, engine="plain", checkpoint={"every_steps": 10, "keep": 2}), *ONE_RANK)
    follower = subprocess.Popen(
        [sys.executable, "-m", "launch", "logs", str(run), "--follow"],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    wait(lambda: steps_saved(run), "a checkpoint", run)
    (row,) = json.loads(ok("status", str(run), "--json"))["runs"]
    assert (row["job"], row["state"], row["nodes"]) == (job, "RUNNING", "n1")
    assert row["phase"] in ("training", "saving")
    assert (row["kind"], row["progress"]["total_steps"]) == ("training", STEPS)
    assert " RUNNING " in ok("status", "--root", str(run.parent))

    told = launch("stop", str(run), "--wait", str(PATIENCE_S))
    assert told.returncode == 0, told.stderr
    assert attempts(run)[-1].cause == "stopped_by_user"
    stopped_at = steps_saved(run)[-1]
    assert state(job) == "COMPLETED", "it is stopped by the user, and is not requeued"
    assert follower.wait(timeout=PATIENCE_S) == 0, "the run is over, so following it is"
    assert follower.communicate()[0] == said(run)

    again = ok("resume", str(run), "--time", "10").strip()
    begun = wait(lambda: (found := attempts(run)) and found[-1], "the next attempt", run)
    assert (begun.job, begun.first_step) == (again, stopped_at)
    status = ok("status", str(run))
    step = re.search(rf"step        (\d+)/{STEPS}, loss ", status)
    assert step is not None and int(step[1]) >= stopped_at, status
    assert "limit 00:10:00" in status
    wait(lambda: read_done(run) == STEPS, "the end of the run", run)
    assert " done " in ok("status", "--root", str(run.parent))
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
