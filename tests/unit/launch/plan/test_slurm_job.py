from __future__ import annotations

import difflib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.errors import ConfigError
from launch.plan.request import Profile, seconds_of
from launch.plan.slurm_job import SlurmPlan, find_plan, plan_job, read_plan
from tests.unit.launch.slurm.scripts import ARRAY, CPU, EVERYTHING, PROFILE, REQUEST, SCRIPTS


def test_a_gpu_job() -> None:
    plan = plan_job(REQUEST, Profile())
    assert (plan.request.world_size, plan.tasks_per_node, plan.cpus_per_task) == (32, 8, 8)
    assert plan.directives["gpus-per-node"] == "8"
    assert "--gpus-per-node=8" in plan.srun_options
    assert "--cpus-per-task=8" in plan.srun_options
    assert plan.command[0] == "/shared/venv/bin/python"


def test_the_network_is_shown_with_its_reasons() -> None:
    assert "network        auto: each node looks at its own" in plan_job(REQUEST, Profile()).to_text()
    text = plan_job(replace(REQUEST, network="efa"), Profile()).to_text()
    assert "network          FI_PROVIDER=efa  (libfabric may else take its TCP provider)" in text


def test_ranks_on_the_cpu() -> None:
    plan = plan_job(CPU, Profile())
    assert (plan.request.world_size, plan.cpus_per_task) == (8, 1)
    assert "gpus-per-node" not in plan.directives
    assert plan.environment["DS_ACCELERATOR"] == "cpu"


def test_torchrun_has_one_task_with_all_the_cores() -> None:
    plan = plan_job(replace(REQUEST, launcher="torchrun"), Profile())
    assert (plan.request.world_size, plan.tasks_per_node, plan.cpus_per_task) == (32, 1, 64)
    assert plan.environment["OMP_NUM_THREADS"] == "8"
    assert plan.command[-4:] == ("-m", "pretrain", "--recipe", "/shared/runs/base/recipe.yaml")


def test_the_command_line_wins_over_the_profile() -> None:
    profile = Profile(partition="small", account="other", sbatch={"mem": "0", "comment": "site"})
    plan = plan_job(EVERYTHING, profile)
    assert plan.directives["partition"] == "small"
    assert plan.directives["account"] == "project7"
    assert plan.directives["mem"] == "0"
    assert plan.directives["comment"] == "a 'quoted' comment"


def test_options_win_over_entries_of_the_profile_for_sbatch_of_the_same_name() -> None:
    sbatch = {"time": "1:00:00", "partition": "small", "cpus-per-task": "12", "gpus-per-node": "h100:8", "mem": "0"}
    profile = Profile(sbatch=sbatch)
    given = plan_job(replace(REQUEST, time="2:00:00", partition="large", cpus_per_task=4), profile).directives
    assert (given["time"], given["partition"], given["cpus-per-task"]) == ("2:00:00", "large", "4")
    given = plan_job(REQUEST, profile).directives
    assert sbatch.items() <= given.items(), "a site's entries win over defaults"
    assert {"time": "1:00:00", "partition": "small"}.items() <= plan_job(REQUEST, profile).directives.items()
    assert plan_job(REQUEST, Profile()).directives["time"] == "24:00:00"
    with pytest.raises(ConfigError, match="--time 1:00:00 is not longer than the 3600 s"):
        plan_job(replace(REQUEST, save_s=3600), profile)


def test_each_task_of_an_array_is_alone() -> None:
    plan = plan_job(ARRAY, Profile())
    assert plan.directives["array"] == "0-63%16"
    assert plan.directives["output"] == "/shared/runs/base/logs/slurm_%a.log"
    assert "signal" not in plan.directives
    with pytest.raises(ConfigError, match="each of its tasks is a job alone"):
        plan_job(replace(ARRAY, nodes=2), Profile())


def test_plans_can_be_compared() -> None:
    before, after = (plan_job(replace(REQUEST, nodes=nodes), Profile()) for nodes in (4, 8))
    changed = [
        line[1:].strip()
        for line in difflib.unified_diff(before.to_text().splitlines(), after.to_text().splitlines(), lineterm="", n=0)
        if line.startswith("+") and not line.startswith("+++")
    ]
    assert [line.split()[0] for line in changed] == ["base:", "sbatch"]
    content = json.loads(before.to_json())
    assert content["request"]["nodes"] == 4
    assert list(content) == sorted(content)


def test_all_faults_at_once() -> None:
    request = replace(
        REQUEST, nodes=0, tasks_per_node=9, time="2:00", sbatch={"nodes": "3", "Bad Key": "1"}, container="image.sqsh"
    )
    with pytest.raises(ConfigError) as caught:
        plan_job(request, Profile())
    for fault in (
        "--nodes 0 is below 1",
        "9 tasks per node for 8 GPU(s)",
        "--time 2:00 is not longer than the 300 s for saving",
        "--sbatch nodes: use --nodes",
        "--sbatch Bad Key=1 is no option",
        "--container without a profile",
    ):
        assert fault in str(caught.value)


def test_what_would_end_a_line_of_the_script_or_is_no_number_is_refused() -> None:
    request = replace(REQUEST, hang_s=math.nan, name="a\nb", partition="gpu\nrm -r x")
    with pytest.raises(
        ConfigError, match=r"--hang-s nan is below 0; --name 'a\\nb' has .*; --partition 'gpu\\nrm -r x'"
    ):
        plan_job(request, Profile())


def test_what_has_an_option_of_its_own_is_no_other_option_of_sbatch() -> None:
    asked = {
        "partition": "x",
        "cpus-per-task": "4",
        "ntasks-per-node": "2",
        "gpus-per-node": "8",
        "open-mode": "truncate",
    }
    with pytest.raises(ConfigError) as caught:
        plan_job(replace(REQUEST, sbatch=asked), Profile())
    for option in ("--partition", "--cpus-per-task", "--tasks-per-node", "--gpus-per-node"):
        assert f"use {option}" in str(caught.value)
    assert "--sbatch open-mode: the plan sets it" in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("gres", "gpu:a100:4"), ("gpus", "4"), ("tres-per-task", "gres/gpu:1")])
def test_gpus_of_which_the_ranks_would_not_know(key: str, value: str) -> None:
    on_cpus = replace(REQUEST, gpus_per_node=0, sbatch={key: value, "mem": "0"})
    with pytest.raises(ConfigError, match="without --gpus-per-node: the ranks would run on the CPU") as caught:
        plan_job(on_cpus, Profile())
    assert "mem" not in caught.value.got
    plan_job(replace(on_cpus, gpus_per_node=8), Profile())


def test_a_container_that_hides_the_environment_is_refused() -> None:
    profile = Profile(container="apptainer", container_flags=("--no-home", "--cleanenv"))
    with pytest.raises(ConfigError, match="container_flags --cleanenv: the ranks get their place from"):
        plan_job(replace(REQUEST, container="image.sif"), profile)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 600), ("10:30", 630), ("1:00:00", 3600), ("2-00", 172800), ("1-01:30", 91800), ("UNLIMITED", None)],
)
def test_time_limits(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


def test_a_time_that_is_none() -> None:
    with pytest.raises(ConfigError, match="For example --time 24:00:00"):
        seconds_of("a day")


@pytest.mark.parametrize("name", SCRIPTS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    request, profile = SCRIPTS[name]
    plan = plan_job(replace(request, run_folder=tmp_path), profile)
    store(plan)
    assert read_plan(tmp_path) == plan


def store(plan: SlurmPlan) -> None:
    (plan.run_folder / "slurm").mkdir(parents=True)
    (plan.run_folder / "slurm/plan.json").write_text(plan.to_json())


def test_a_plan_is_made_again_from_what_it_was_made_from(tmp_path: Path) -> None:
    plan = plan_job(replace(CPU, run_folder=tmp_path), PROFILE)
    store(plan)
    found = read_plan(tmp_path)
    assert plan_job(found.request, found.profile) == plan
    assert plan_job(replace(found.request, nodes=7), found.profile).directives["nodes"] == "7"


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    assert find_plan(tmp_path) is None
    with pytest.raises(ConfigError, match=r"expected a run that was submitted to Slurm, got no slurm/plan.json"):
        read_plan(tmp_path)
    store(plan_job(replace(CPU, run_folder=tmp_path / "a"), PROFILE))
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"expected the folder .*/a, as its plan and script say, got another place"):
        read_plan(tmp_path / "b")
    assert find_plan(tmp_path / "b") is not None
    (tmp_path / "b/slurm/plan.json").write_text(json.dumps({"name": "a"}))
    with pytest.raises(ConfigError, match="expected the plan of a job, got"):
        read_plan(tmp_path / "b")


def test_a_plan_of_an_older_version_can_be_read(tmp_path: Path) -> None:
    """It had what the request holds twice, an interpreter more, and no number of its version."""
    plan = plan_job(replace(CPU, run_folder=tmp_path), PROFILE)
    values = json.loads(plan.to_json())
    del values["version"], values["request"]["preflight_s"]
    values["request"]["host_python"] = "/shared/venv/bin/python"
    values |= {"name": "base", "nodes": 4, "hang_s": 1800.0}
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/plan.json").write_text(json.dumps(values))
    assert find_plan(tmp_path) == replace(plan, version=1)
