"""Small jobs for the launcher's tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cclm.recipe import check
from cclm.recipe.check import CheckedRecipe
from cclm.run.machine import this_machine
from launch.plan.job import JobPlan, make_plan
from tests.tiny_config import run_config
from tests.unit.launch.slurm.fake_slurm import FakeSlurm

PlanMaker = Callable[..., JobPlan]
PASSED = CheckedRecipe(config=run_config(), notes=())


@pytest.fixture(autouse=True)
def recipes_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes of these tests are a line or two; `plan/test_recipe.py` has the check itself."""
    monkeypatch.setattr(check, "check_recipe", lambda *arguments, **options: PASSED)


@pytest.fixture
def plan_python(tmp_path: Path) -> PlanMaker:
    """Plan ranks that run a piece of Python; it starts with `rank` and `folder` defined."""

    def make(code: str, num_ranks: int = 2) -> JobPlan:
        program = tmp_path / "program.py"
        program.write_text(
            "import os, signal, subprocess, sys, time\nfrom pathlib import Path\n"
            f"rank, folder = int(os.environ['RANK']), Path({str(tmp_path)!r})\n" + code
        )
        return make_plan(
            ("python", "-S", str(program)),
            this_machine(),
            os.environ,
            folder=tmp_path,
            run_folder=tmp_path / "run",
            num_ranks=num_ranks,
            threads_per_rank=1,
        )

    return make


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A Slurm without any command yet, and no other on the PATH."""
    return FakeSlurm(tmp_path, monkeypatch)
