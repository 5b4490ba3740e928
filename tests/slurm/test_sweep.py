"""A sweep: each point is a run of its own, fails, is saved, requeued and submitted again without the others."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.slurm.jobs import attempts, ended, launch, read_done, said, slurm, start_now, state, steps_saved, tiny, wait
from tests.tiny_run import write_corpus

LONG, SHORT = 120, 2
"""Steps of a point that is interrupted, and of one that is not."""


def test_points_fail_and_go_on_each_for_itself(tmp_path: Path) -> None:
    corpus, run = write_corpus(tmp_path), tmp_path / "sweep"
    late = tmp_path / "late"
    late.mkdir()
    (late / "tokenizer.json").write_text("{}")  # it is there, which is all that the submission asks
    points = [{"optimizer.total_steps": LONG}, {"optimizer.total_steps": SHORT, "data": {"tokenizer": str(late)}}]
    (tmp_path / "points.yaml").write_text(yaml.safe_dump(points))
    recipe = tiny(corpus, tmp_path / "unused", SHORT, checkpoint={"every_steps": 4, "keep": 1}, engine="plain")
    small = ("--time", "5", "--save-s", "60", "--preflight", "none", "--concurrent", "2")
    words = ("sweep", str(recipe), "--points", str(tmp_path / "points.yaml"), "--run-folder", str(run), *small)

    told = launch(*words)
    assert told.returncode == 0, told.stderr
    array = told.stdout.strip()
    first, second = (run / f"points/{number}" for number in range(2))
    wait(lambda: steps_saved(first), "a checkpoint", first)
    slurm("scancel", "--batch", "--signal=USR1", f"{array}_0")
    wait(lambda: state(f"{array}_0") == "PENDING", "the requeue of point 0", first)
    assert read_done(first) is None
    assert attempts(first)[0].exit_status == "stopped"

    assert ended(f"{array}_1", second) == "FAILED", said(second)
    assert str(late) in attempts(second)[0].reason
    table = json.loads(launch("sweep-results", str(run), "--json").stdout)
    assert [row["state"] for row in table] == ["waiting", "failed"], table
    assert str(late) in table[1]["reason"]
    (late / "tokenizer.json").unlink()
    (corpus / "tokenizer").rename(late)
    (corpus / "tokenizer").symlink_to(late)
    told = launch(*words)
    assert told.returncode == 0, told.stderr
    assert f"point 0 has job {array}_0" in told.stderr
    assert "point(s) 1 of 2" in told.stderr
    start_now(f"{array}_0")
    for number, (job, steps) in enumerate(((array, LONG), (told.stdout.strip(), SHORT))):
        point = run / f"points/{number}"
        assert ended(f"{job}_{number}", point) == "COMPLETED", said(point)
        assert read_done(point) == steps
    assert [attempt.job for attempt in attempts(first)] == [f"{array}_0"] * 2
    assert 0 < attempts(first)[1].first_step < LONG

    table = json.loads(launch("sweep-results", str(run), "--json", "--sort", "step").stdout)
    assert [(row["point"], row["state"], row["step"]) for row in table] == [(1, "done", SHORT), (0, "done", LONG)]
    assert all(row["loss"] > 0 for row in table)
    again = launch(*words)
    assert again.returncode == 2
    assert "expected points that are not done and have no job, got all are done" in again.stderr


def test_one_point_that_waits_is_stopped(tmp_path: Path) -> None:
    """Slurm keeps the tasks that wait in one record, and a careless scancel ends them all."""
    run = tmp_path / "sweep"
    recipe = tiny(write_corpus(tmp_path), tmp_path / "unused", SHORT, engine="plain")
    small = ("--time", "5", "--save-s", "60", "--preflight", "none", "--sbatch", "hold")
    told = launch("sweep", str(recipe), "--vary", "seed=1,2,3", "--run-folder", str(run), *small)
    assert told.returncode == 0, told.stderr
    array = told.stdout.strip()
    assert launch("stop", str(run / "points/1")).returncode == 0
    states = [state(f"{array}_{number}") for number in range(3)]
    assert launch("cancel", str(run)).returncode == 0
    assert [now == "PENDING" for now in states] == [True, False, True], states
    assert slurm("squeue", "--noheader", "--jobs", array) == ""
