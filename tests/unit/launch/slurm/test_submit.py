from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cclm.run.status import DoneMarker
from launch.__main__ import main
from launch.slurm.history import last_job, read_history


def test_submit_writes_everything_and_prints_the_job(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "small", "--nodes", "2", "--", "--optimizer.total_steps", "3"]) == 0
    told = capsys.readouterr()
    assert told.out == "7\n"
    assert "launch: Job 6 to start at noon on n[1-2]" in told.err
    run = here / "runs/small"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (recipe["run_folder"], recipe["optimizer"]) == (str(run), {"total_steps": 3})
    plan = json.loads((run / "slurm/plan.json").read_text())
    assert plan["request"]["reads"] == [str(here / "data/images")]
    assert f"run={run}" in (run / "slurm/job.sh").read_text()
    assert (run / "code/data").resolve() == here / "data"
    assert last_job(read_history(run)) == "7"


def test_dry_run_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "small", "--nodes", "2", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n# small: 2 node(s) x 1 rank(s)")
    assert not (here / "runs").exists()


def test_plan_with_nodes_is_the_job(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "small", "--nodes", "2", "--gpus-per-node", "4"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("small: 2 node(s) × 4 = 8 rank(s); a node: 4 task(s) × 8 core(s), 4 GPU(s)")
    assert main(["plan", "small", "--json", "--nodes", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["directives"]["job-name"] == "small"


def test_a_run_has_one_job_at_a_time(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "small"]) == 0
    assert main(["submit", "small"]) == 2
    assert "expected a run without a job, got job 7 is RUNNING. Wait for it, or end it" in capsys.readouterr().err
    (here / "bin/state").write_text("FAILED\n")
    assert main(["submit", "small"]) == 0


def test_a_done_run_is_not_submitted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DoneMarker(here / "runs/small").write(step=3, seconds=1.0)
    assert main(["submit", "small"]) == 2
    assert "expected a run that is not done, got done at step 3" in capsys.readouterr().err


def test_any_command_may_be_a_job(here: Path) -> None:
    assert main(["submit", "--run-folder", "runs/other", "--nodes", "2", "--", "python", "-m", "shards", "verify"]) == 0
    plan = json.loads((here / "runs/other/slurm/plan.json").read_text())
    assert plan["command"][1:] == ["-m", "shards", "verify"]
    assert plan["request"]["is_training"] is False


def ended_task(run: Path, number: int, code: int) -> None:
    record = {"rank": number, "host": "n1", "attempt": 0, "code": code, "time": 0.0, "cause": "exit", "reason": ""}
    (run / f"status/exit_task_{number}.json").write_text(json.dumps(record))


def test_an_array_is_submitted_again_for_what_failed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, array = here / "runs/parts", ["submit", "--run-folder", "runs/parts", "--array", "3", "--concurrent", "2"]
    words = ["--", "python", "-m", "shards", "build", "--task", "@TASK@/3"]
    assert main([*array, *words]) == 0
    (here / "bin/state").write_text("FAILED\n")
    for number, code in enumerate((0, 1)):
        ended_task(run, number, code)
    assert main([*array, *words]) == 0
    assert "sbatch --parsable --array=1,2%2 " in (here / "bin/calls").read_text().splitlines()[-1]
    assert "launch: array tasks 1, 2 of 3" in capsys.readouterr().err
    assert main([*array[:4], "2", *array[5:], *words]) == 2
    assert "expected an array of 3 tasks, as before, got 2" in capsys.readouterr().err
    for number in (1, 2):
        ended_task(run, number, 0)
    assert main([*array, *words]) == 2
    assert "expected array tasks that have not ended with code 0, got none" in capsys.readouterr().err


def test_a_job_after_another_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = ["submit", "small", "--after", "runs/parts"]
    assert main(after) == 2
    assert "expected a run that is done, or has a job, got" in capsys.readouterr().err
    assert not (here / "runs/small").exists(), "nothing is written before that is known"
    assert main(["submit", "--run-folder", "runs/parts", "--", "true"]) == 0
    assert main(after) == 0
    assert "sbatch --parsable --dependency=afterany:7 " in (here / "bin/calls").read_text().splitlines()[-1]
    assert f"attempt after --other {here}/runs/parts || exit 1" in (here / "runs/small/slurm/job.sh").read_text()


def test_shards_are_three_jobs_that_wait_for_each_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "shards/recipes").mkdir(parents=True)
    (here / "shards/recipes/corpus.yaml").write_text("sets: {pairs: {num_shards: 8}}")
    build = ["shards", "corpus", "--out", "data/corpus", "--tasks", "4", "--write-tasks", "2", "--cpus-per-task", "3"]
    assert main([*build, "--", "--sets.pairs.num_shards", "9"]) == 0
    assert capsys.readouterr().out.splitlines() == ["read 7", "write 7", "merge 7"]
    folder = here / "runs/shards-corpus"
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == {"sets": {"pairs": {"num_shards": 9}}}
    plans = [json.loads((folder / name / "slurm/plan.json").read_text()) for name in ("read", "write", "merge")]
    where = [str(folder / "recipe.yaml"), "--out", str(here / "data/corpus"), "--workers", "3"]
    assert [plan["command"][1:] for plan in plans] == [
        ["-m", "shards", "build", *where, "--task", "@TASK@/4"],
        ["-m", "shards", "merge", *where, "--task", "@TASK@/2"],
        ["-m", "shards", "merge", *where],
    ]
    assert [plan["request"]["array"] for plan in plans] == [4, 2, 0]
    assert [plan["request"]["after"] for plan in plans] == [None, str(folder / "read"), str(folder / "write")]
    (here / "bin/state").write_text("FAILED\n")
    assert main([*build, "--", "--sets.pairs.num_shards", "10"]) == 2, "queued tasks keep the recipe they were given"
    assert "expected the recipe of the earlier submission, got another one" in capsys.readouterr().err
    assert "num_shards: 9" in (folder / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "expected a recipe, or a command after `--`, got neither"),
        (["--", "true"], "expected --run-folder, or a recipe with a run_folder, got neither"),
        (["smal"], "expected the path of a YAML file or one of small, got 'smal'"),
        (["small", "--profile", "nowhere"], "expected the path of a YAML file or one of apptainer"),
    ],
)
def test_mistakes_are_sentences(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["submit", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_the_folder_of_a_sweep_takes_no_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "small", "--vary", "seed=1,2", "--run-folder", "runs/rates"]) == 0
    assert main(["submit", "small", "--run-folder", "runs/rates"]) == 2
    assert "expected a folder for one run, got a sweep.json" in capsys.readouterr().err


def test_a_place_that_takes_no_folder_is_a_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").touch()
    assert main(["submit", "small", "--run-folder", "file"]) == 2
    assert capsys.readouterr().err.endswith(f"\nlaunch: {here}/file/.code.partial: Not a directory\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["submit", "small", "--gpus-per-node", "-1", "--save-s", "-2"],
            "--gpus-per-node -1 is below 0; --save-s -2 is",
        ),
        (["shards", "small", "--out", "out", "--tasks", "0"], "expected --tasks of at least 1"),
        (["plan", "small"], "expected --nodes with a recipe, got recipe small alone"),
    ],
)
def test_numbers_that_make_no_job(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(words) == 2
    assert sentence in capsys.readouterr().err
