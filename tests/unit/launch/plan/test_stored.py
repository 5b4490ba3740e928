"""A plan read back from its JSON is the same plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.errors import ConfigError
from launch.plan.slurm_job import SlurmPlan, plan_job
from launch.plan.stored import read_plan, rebuild
from tests.unit.launch.slurm.jobs import CPU, PROFILE, REQUEST, SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_there_and_back(name: str) -> None:
    plan = plan_job(*SCRIPTS[name])
    assert rebuild(SlurmPlan, json.loads(plan.to_json())) == plan


def stored(folder: Path) -> SlurmPlan:
    plan = plan_job(replace(CPU, run_folder=folder), PROFILE)
    (folder / "slurm").mkdir(parents=True)
    (folder / "slurm/plan.json").write_text(plan.to_json())
    return plan


def test_a_plan_is_made_again_from_what_it_was_made_from(tmp_path: Path) -> None:
    plan = stored(tmp_path)
    found = read_plan(tmp_path)
    assert found == plan
    assert plan_job(found.request, found.profile) == plan
    assert plan_job(replace(found.request, nodes=7), found.profile).directives["nodes"] == "7"


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a run that was submitted to Slurm, got no slurm/plan.json"):
        read_plan(tmp_path)
    stored(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"expected the folder .*/a, as its plan and script say, got another place"):
        read_plan(tmp_path / "b")
    values = json.loads(plan_job(REQUEST, PROFILE).to_json())
    del values["request"]
    (tmp_path / "b/slurm/plan.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="expected the keys request, got a plan of an older version"):
        read_plan(tmp_path / "b")
