"""Submit a run again from its own folder, as it was or with another size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError
from launch.plan.slurm_job import plan_job, read_plan
from launch.slurm.submit import Say, submit, submit_as_it_is


def resume(run_folder: Path, changes: Mapping[str, Any], *, say: Say, new_code: bool = False) -> tuple[str, Path]:
    """Submit a run again; return the job's id and the path of its log.

    `changes`: fields of its `SlurmRequest`; without any, the script is submitted as it lies there. `new_code`: copy the
    checkout's code anew. Raise as `submit` does, and ConfigError if the run was never submitted.
    """
    plan = read_plan(run_folder)
    if new_code and plan.request.code_folder is not None:
        raise ConfigError(
            where="--new-code", expected="a run with code of its own", got="a point of a sweep, which shares it",
            do="Give the command of the sweep again, with --new-code.",
        )  # fmt: skip
    if not changes and not new_code:
        return submit_as_it_is(plan, say=say), plan.log
    changed = plan_job(replace(plan.request, **changes), plan.profile)
    before = set(plan.to_text().splitlines())
    for line in changed.to_text().splitlines():
        if line not in before:
            say(f"now: {line}")
    return submit(changed, say=say, new_code=new_code), changed.log
