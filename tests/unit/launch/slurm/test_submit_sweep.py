"""A sweep on a cluster played by scripts; tests/slurm/test_sweep.py has a real one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cclm.run.status import DoneMarker
from launch.__main__ import main
from launch.plan.request import read_profile
from launch.plan.slurm_job import plan_job
from launch.slurm.history import last_job, read_history
from launch.slurm.jobs import jobs_alive
from launch.slurm.restart import why_not_done
from tests.unit.launch.slurm.scripts import point

SWEEP = ("sweep", "small", "--vary", "optimizer.learning_rate=1e-4,3e-4,1e-3", "--concurrent", "2")


def calls(here: Path) -> list[str]:
    return (here / "bin/calls").read_text().splitlines()


def sweep(here: Path, *words: str) -> int:
    return main([*SWEEP, "--run-folder", "runs/rates", *words])


def test_every_point_is_a_run_folder_of_its_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(here, "--nodes", "2", "--time", "1:00:00", "--", "--seed", "5") == 0
    assert capsys.readouterr().out == "7\n"
    run = here / "runs/rates"
    asked = json.loads((run / "sweep.json").read_text())
    assert [item["optimizer.learning_rate"] for item in asked["points"]] == [0.0001, 0.0003, 0.001]
    script = (run / "slurm/job.sh").read_text()
    for line in ("--array=0-2%2", "--nodes=2", "--time=1:00:00", f"--output={run}/points/%a/logs/slurm.log"):
        assert f"#SBATCH {line}\n" in script
    for number, rate in enumerate((0.0001, 0.0003, 0.001)):
        folder = run / f"points/{number}"
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        assert (recipe["optimizer"]["learning_rate"], recipe["seed"]) == (rate, 5)
        assert recipe["run_folder"] == str(folder)
        assert (folder / "code").resolve() == run / "code"
        assert (folder / "code.sha256").read_text() == (run / "code.sha256").read_text()
        plan = json.loads((folder / "slurm/plan.json").read_text())
        assert (plan["request"]["name"], plan["request"]["array"], plan["request"]["is_training"]) == (
            f"rates.{number}",
            0,
            True,
        )
        assert f"\nrun={folder}\n" in (folder / "slurm/job.sh").read_text()
        assert last_job(read_history(folder)) == f"7_{number}"
        assert (folder / "logs").is_dir(), "Slurm writes its output there, and makes no folder"


def test_no_task_begins_before_the_histories_know_of_it(here: Path) -> None:
    assert sweep(here) == 0
    assert calls(here)[-2:] == [
        f"sbatch --parsable --hold --array=0-2%2 {here}/runs/rates/slurm/job.sh",
        "scontrol release 7",
    ]
    (here / "bin/state").write_text("CANCELLED\n")
    shutil.rmtree(here / "runs")
    assert sweep(here, "--sbatch", "hold") == 0
    assert calls(here)[-1].startswith("sbatch --parsable --hold"), "the user wants it to stay on hold"


def test_the_same_command_submits_what_is_left(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(here) == 0
    assert sweep(here) == 2
    assert "expected points that are not done and have no job, got 3 still with a job" in capsys.readouterr().err
    asked = [call for call in calls(here) if call.startswith("squeue")]
    assert len(asked) == 1, "one question for all points"
    (here / "bin/state").write_text("FAILED\n")
    DoneMarker(here / "runs/rates/points/1").write(step=3, seconds=1.0)
    assert sweep(here) == 0
    assert "sbatch --parsable --hold --array=0,2%2 " in calls(here)[-2]
    assert "launch: point(s) 0, 2 of 3" in capsys.readouterr().err
    assert len(read_history(here / "runs/rates/points/1")) == 1
    for number in (0, 2):
        DoneMarker(here / f"runs/rates/points/{number}").write(step=3, seconds=1.0)
    assert sweep(here) == 2
    assert "got all are done" in capsys.readouterr().err


def test_code_is_not_replaced_under_a_job(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(here) == 0
    assert sweep(here, "--new-code") == 2
    assert "expected no job that runs the present code, got 7_0, 7_1, 7_2" in capsys.readouterr().err


def test_what_one_point_found_bad_is_left_out_for_all(here: Path) -> None:
    assert sweep(here, "--exclude", "n9") == 0
    (here / "bin/state").write_text("FAILED\n")
    (here / "runs/rates/points/1/slurm/excluded.json").write_text('[["n2"]]')
    assert sweep(here, "--exclude", "n9") == 0
    assert "--exclude" not in calls(here)[-2], "it was not asked for"
    assert sweep(here, "--exclude", "n9", "--replace-bad-nodes") == 0
    assert "--exclude=n9,n2 " in calls(here)[-2]


def test_a_point_may_leave_the_shared_code_and_come_back(here: Path) -> None:
    assert sweep(here) == 0
    (here / "bin/state").write_text("FAILED\n")
    (here / "pretrain/new.py").write_text("B = 2\n")
    run, point = here / "runs/rates", here / "runs/rates/points/1"
    assert main(["submit", "small", "--run-folder", str(point), "--new-code"]) == 0
    assert not (point / "code").is_symlink()
    assert (point / "code/pretrain/new.py").exists()
    assert not (run / "code/pretrain/new.py").exists(), "the others keep what they had"
    assert (point / "code.sha256").read_text() != (run / "code.sha256").read_text()
    assert sweep(here) == 0
    assert (point / "code").resolve() == run / "code"
    assert (point / "code.sha256").read_text() == (run / "code.sha256").read_text()


def test_nothing_is_submitted_twice_while_slurm_is_silent(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(here) == 0
    (here / "bin/squeue").write_text("#!/bin/bash\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    assert sweep(here) == 2
    assert "expected the state of jobs, got" in capsys.readouterr().err
    assert calls(here)[-1] == "scontrol release 7", "of the first submission"


def test_another_grid_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(here) == 0
    (here / "bin/state").write_text("FAILED\n")
    before = (here / "runs/rates/sweep.json").read_text()
    assert sweep(here, "--vary", "seed=1,2") == 2
    assert "as before, got 6 other points. Give the same command, or choose another" in capsys.readouterr().err
    assert (here / "runs/rates/sweep.json").read_text() == before
    assert not (here / "runs/rates/points/3").exists()


def test_a_run_may_wait_for_a_sweep(here: Path) -> None:
    assert sweep(here) == 0
    run = here / "runs/rates"
    assert jobs_alive(run) == ["7_0", "7_1", "7_2"]
    assert why_not_done(run) == "point(s) 0, 1, 2 are not done"
    assert main(["submit", "small", "--after", "runs/rates"]) == 0
    assert "sbatch --parsable --dependency=afterany:7_0:7_1:7_2 " in calls(here)[-1]
    for number in range(3):
        DoneMarker(run / f"points/{number}").write(step=3, seconds=1.0)
    assert why_not_done(run) == ""


def test_dry_run_prints_points_and_scripts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(here, "--dry-run") == 0
    text = capsys.readouterr().out
    assert text.startswith("point 0  optimizer.learning_rate=0.0001\npoint 1  optimizer.learning_rate=0.0003\n")
    assert text.count("#!/bin/bash") == 2
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    "words", [("sweep", "--vary", "seed=1"), ("sweep", "small", "--vary", "seed=1", "--array", "3")]
)
def test_a_sweep_is_of_a_recipe_and_has_its_own_array(
    here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert main(list(words)) == 2
    assert "sweep: expected a recipe, and points instead of --array" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pyxis", "apptainer"])
def test_a_container_sees_the_shared_code(kind: str) -> None:
    plan = plan_job(replace(point(1), container="image"), read_profile(kind))
    words = " ".join((*plan.srun_options, *plan.task_prefix))
    assert "/shared/runs/rates/points/1" in words
    assert plan.code_folder == Path("/shared/runs/rates/code")
    mounted = f"/points/1,{plan.code_folder}," if kind == "pyxis" else f"--bind {plan.code_folder}"
    assert mounted in words
