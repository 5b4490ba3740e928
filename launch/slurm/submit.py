"""Carry out a Slurm plan: snapshot, script, `sbatch --test-only`, `sbatch`; the job's id goes into the history."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError
from cclm.files.atomic import replace_text
from cclm.run.status import DoneMarker
from launch.plan.slurm_job import PLAN_NAME, SLURM_FOLDER, SlurmPlan
from launch.plan.snapshot import take_snapshot, write_recipe
from launch.plan.sweep import SWEEP_NAME, is_sweep
from launch.slurm.client import submit_script, would_take
from launch.slurm.history import Event, add_event
from launch.slurm.live_jobs import jobs_alive, live_jobs
from launch.slurm.node_health import EXCLUDED, excluded_nodes
from launch.slurm.restart import elements_left, why_not_done
from launch.slurm.script import render


def submit(
    plan: SlurmPlan,
    *,
    say: Callable[[str], None],
    recipe: tuple[Mapping[str, Any], Path] | None = None,
    new_code: bool = False,
) -> str:
    """Submit a job; returns its id.

    Args:
        plan: what to do.
        say: receives one line of progress at a time.
        recipe: content to write as the run's recipe, and where it came from.
        new_code: replace the snapshot of an earlier submission.

    Raises:
        ConfigError: the run is done, or a job of it still waits or runs.
        CclmError: the cluster cannot run it, or does not answer.
    """
    refuse_twice(plan)
    options = options_of(plan, say)
    code = take_snapshot(plan.checkout, plan.run_folder, anew=new_code)
    say(f"code {code[:12]} in {plan.code_folder}")
    write_job(plan, recipe)
    return _send(plan, options, say)


def submit_as_it_is(plan: SlurmPlan, *, say: Callable[[str], None]) -> str:
    """Submit the script that lies in the run folder, whoever may have edited it; returns the job's id.

    Raises:
        As `submit`.
    """
    refuse_twice(plan)
    return _send(plan, options_of(plan, say), say)


def _send(plan: SlurmPlan, options: Sequence[str], say: Callable[[str], None]) -> str:
    say(would_take(str(plan.script)))
    job = submit_script(str(plan.script), *options)
    add_event(plan.run_folder, Event(event="submitted", job=job, by_user=True, why=shlex.join(sys.argv[1:])))
    return job


def write_job(plan: SlurmPlan, recipe: tuple[Mapping[str, Any], Path] | None) -> None:
    """Write recipe, plan and script into the run folder."""
    for name in ("logs", SLURM_FOLDER, "status"):
        (plan.run_folder / name).mkdir(parents=True, exist_ok=True)
    if recipe is not None:
        write_recipe(plan.run_folder, dict(recipe[0]), recipe[1])
    replace_text(plan.run_folder / SLURM_FOLDER / PLAN_NAME, plan.to_json() + "\n")
    replace_text(plan.script, render(plan))


def options_of(plan: SlurmPlan, say: Callable[[str], None]) -> list[str]:
    """What sbatch is told besides the script.

    Raises:
        ConfigError: the run cannot be submitted now.
    """
    return [*dependency(plan, say), *elements(plan, say), *bad_nodes(plan, say)]


def bad_nodes(plan: SlurmPlan, say: Callable[[str], None]) -> list[str]:
    """Leave out nodes that an earlier life found bad, where bad nodes are to be replaced."""
    return leave_out(plan, excluded_nodes(plan.run_folder), str(plan.run_folder / EXCLUDED), say)


def leave_out(plan: SlurmPlan, found: Sequence[str], source: str, say: Callable[[str], None]) -> list[str]:
    """Options that leave out bad nodes, where bad nodes are to be replaced. `source`: the file that names them."""
    if not found or not plan.replace_bad_nodes:
        return []
    say(f"leaves out {', '.join(found)}, found bad before; remove {source} to use them again")
    return ["--exclude=" + ",".join([*filter(None, [plan.directives.get("exclude")]), *found])]


def dependency(plan: SlurmPlan, say: Callable[[str], None]) -> list[str]:
    """How sbatch is told to wait for another run's job; the script itself then looks whether that run is done.

    Raises:
        ConfigError: the other run is not done, and no job of it waits or runs.
    """
    if plan.after is None:
        return []
    jobs, why = jobs_alive(plan.after), why_not_done(plan.after)
    if jobs:
        say(f"begins after job {', '.join(jobs)} of {plan.after}")
        return [f"--dependency=afterany:{':'.join(jobs)}"]
    if why:
        raise ConfigError(
            where="--after", expected="a run that is done, or has a job", got=f"{plan.after}: {why}",
            do="Submit that run first.",
        )  # fmt: skip
    return []


def elements(plan: SlurmPlan, say: Callable[[str], None]) -> list[str]:
    """Which elements of an array to run: all of them, or after an earlier submission those that failed.

    Raises:
        ConfigError: none is left, or the array had another number of elements before: they meant other shares.
    """
    if not plan.array:
        return []
    path = plan.run_folder / SLURM_FOLDER / PLAN_NAME
    before = json.loads(path.read_text(encoding="utf-8"))["array"] if path.exists() else plan.array
    if before != plan.array:
        raise ConfigError(
            where=str(plan.run_folder), expected=f"an array of {before} elements, as before", got=f"{plan.array}",
            do="Give the same number, or choose another --run-folder.",
        )  # fmt: skip
    left = elements_left(plan.run_folder, plan.array)
    if not left:
        raise ConfigError(
            where=str(plan.run_folder), expected="elements that have not ended with code 0", got="none",
            do="Everything is done. Choose another --run-folder to do it again.",
        )  # fmt: skip
    if len(left) == plan.array:
        return []
    say(f"elements {', '.join(map(str, left))} of {plan.array}")
    limit = plan.directives["array"].partition("%")[2]
    return [f"--array={','.join(map(str, left))}" + (f"%{limit}" if limit else "")]


def refuse_twice(plan: SlurmPlan) -> None:
    """Raise ConfigError if the run is done, a job of it waits or runs, or a sweep lives in its folder."""
    run_folder, choose = plan.run_folder, "Choose another --run-folder for a new run."
    if is_sweep(run_folder):
        raise ConfigError(where=str(run_folder), expected="a folder for one run", got=f"a {SWEEP_NAME}", do=choose)
    done = DoneMarker(run_folder).read()
    was_submitted = (run_folder / SLURM_FOLDER / PLAN_NAME).exists()
    jobs = live_jobs(run_folder) if done is None and was_submitted else []
    if jobs:
        raise ConfigError(
            where=str(run_folder), expected="a run without a job", got=f"job {jobs[0].job} is {jobs[0]}",
            do=f"Wait for it, or end it: python -m launch cancel {run_folder}",
        )  # fmt: skip
    # Of an array, `elements` sees what is left; a command leaves no marker, its last life tells.
    if done is not None or (was_submitted and not plan.array and not why_not_done(run_folder)):
        got = f"done at step {done.step}" if done is not None and plan.is_training else "done"
        raise ConfigError(where=str(run_folder), expected="a run that is not done", got=got, do=choose)
