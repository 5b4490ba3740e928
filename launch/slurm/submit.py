"""Submit a Slurm plan: snapshot, script, `sbatch --test-only`, `sbatch`; the job's id goes into the history."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cclm.errors import ConfigError
from cclm.files.atomic import replace_text
from cclm.run.status import DoneMarker
from launch.plan.recipe import Recipe, write_recipe
from launch.plan.slurm_job import PLAN_NAME, PLAN_VERSION, SLURM_FOLDER, SlurmPlan, find_plan
from launch.plan.snapshot import take_snapshot
from launch.plan.sweep import SWEEP_NAME, is_sweep
from launch.slurm.client import submit_script, would_take
from launch.slurm.history import Event, add_event
from launch.slurm.jobs import jobs_alive, live_jobs
from launch.slurm.node_health import EXCLUDED, excluded_nodes
from launch.slurm.restart import tasks_left, why_not_done
from launch.slurm.script import render

Say = Callable[[str], None]
"""Receives one line of progress at a time."""


def submit(plan: SlurmPlan, *, say: Say, recipe: Recipe | None = None, new_code: bool = False) -> str:
    """Submit a job; return its id. `recipe` becomes the run's own; `new_code`: replace the snapshot of an earlier
    submission. Raise ConfigError if the run is done, or has a job, CclmError if the cluster cannot run it."""
    check_submittable(plan, new_code=new_code)
    options = options_of(plan, say)
    code = take_snapshot(plan.request.checkout, plan.run_folder, anew=new_code)
    say(f"code {code[:12]} in {plan.code_folder}")
    write_job(plan, recipe)
    return _send(plan, options, say)


def submit_as_it_is(plan: SlurmPlan, *, say: Say) -> str:
    """Submit the script that lies in the run folder, whoever may have edited it; return the job's id. Raise as `submit`
    does."""
    check_submittable(plan, new_code=False)
    return _send(plan, options_of(plan, say), say)


def _send(plan: SlurmPlan, options: Sequence[str], say: Say) -> str:
    say(would_take(str(plan.script)))
    job = submit_script(str(plan.script), *options)
    add_event(plan.run_folder, Event(event="submitted", job=job, by_user=True, reason=shlex.join(sys.argv[1:])))
    return job


def write_job(plan: SlurmPlan, recipe: Recipe | None) -> None:
    """Write recipe, plan and script into the run folder."""
    for name in ("logs", SLURM_FOLDER, "status"):
        (plan.run_folder / name).mkdir(parents=True, exist_ok=True)
    if recipe is not None:
        write_recipe(plan.run_folder, *recipe)
    replace_text(plan.run_folder / SLURM_FOLDER / PLAN_NAME, plan.to_json() + "\n")
    replace_text(plan.script, render(plan))


def options_of(plan: SlurmPlan, say: Say) -> list[str]:
    """What sbatch is told besides the script. Raise ConfigError if the run cannot be submitted now."""
    bad = leave_out(plan, excluded_nodes(plan.run_folder), str(plan.run_folder / EXCLUDED), say)
    return [*dependency(plan, say), *array_tasks(plan, say), *bad]


def leave_out(plan: SlurmPlan, found: Sequence[str], source: str, say: Say) -> list[str]:
    """Options that leave out bad nodes, where bad nodes are to be replaced. `source`: the file that names them."""
    if not found or not plan.request.replace_bad_nodes:
        return []
    say(f"leaves out {', '.join(found)}, found bad before; remove {source} to use them again")
    return ["--exclude=" + ",".join([*filter(None, [plan.directives.get("exclude")]), *found])]


def dependency(plan: SlurmPlan, say: Say) -> list[str]:
    """How sbatch is told to wait for another run's job; the script itself then looks whether that run is done. Raise
    ConfigError if the other run is not done, and no job of it waits or runs."""
    after = plan.request.after
    if after is None:
        return []
    jobs, why = jobs_alive(after), why_not_done(after)
    if jobs:
        say(f"begins after job {', '.join(jobs)} of {after}")
        return [f"--dependency=afterany:{':'.join(jobs)}"]
    if why:
        raise ConfigError(
            where="--after", expected="a run that is done, or has a job", got=f"{after}: {why}",
            do="Submit that run first.",
        )  # fmt: skip
    return []


def array_tasks(plan: SlurmPlan, say: Say) -> list[str]:
    """Which tasks of an array to run: all of them, or after an earlier submission those that failed. Raise ConfigError
    if none is left, or the array had another number of tasks before: they meant other shares."""
    count, earlier = plan.request.array, find_plan(plan.run_folder)
    if not count:
        return []
    if earlier is not None and earlier.request.array != count:
        raise ConfigError(
            where=str(plan.run_folder), expected=f"an array of {earlier.request.array} tasks, as before",
            got=f"{count}", do="Give the same number, or choose another --run-folder.",
        )  # fmt: skip
    left = tasks_left(plan.run_folder, count)
    if not left:
        raise ConfigError(
            where=str(plan.run_folder), expected="array tasks that have not ended with code 0", got="none",
            do="Everything is done. Choose another --run-folder to do it again.",
        )  # fmt: skip
    if len(left) == count:
        return []
    say(f"array tasks {', '.join(map(str, left))} of {count}")
    limit = plan.directives["array"].partition("%")[2]
    return [f"--array={','.join(map(str, left))}" + (f"%{limit}" if limit else "")]


def check_submittable(plan: SlurmPlan, *, new_code: bool) -> None:
    """Raise ConfigError if the run is done, has a job, is one of another version, or a sweep lives in its folder."""
    run_folder, choose = plan.run_folder, "Choose another --run-folder for a new run."
    if is_sweep(run_folder):
        raise ConfigError(where=str(run_folder), expected="a folder for one run", got=f"a {SWEEP_NAME}", do=choose)
    done, before = DoneMarker(run_folder).read(), find_plan(run_folder)
    jobs = live_jobs(run_folder) if done is None and before is not None else []
    if jobs:
        raise ConfigError(
            where=str(run_folder), expected="a run without a job", got=f"job {jobs[0].job} is {jobs[0]}",
            do=f"Wait for it, or end it: python -m launch cancel {run_folder}",
        )  # fmt: skip
    # Of an array, `array_tasks` sees what is left; a command leaves no marker, its last attempt tells.
    if done is not None or (before is not None and not plan.request.array and not why_not_done(run_folder)):
        got = f"done at step {done.step}" if done is not None and plan.request.is_training else "done"
        raise ConfigError(where=str(run_folder), expected="a run that is not done", got=got, do=choose)
    if not new_code:
        check_version(run_folder)


def check_version(run_folder: Path) -> None:
    """Raise ConfigError if the code that lies in a run folder, or is shared by it, does not read our notes."""
    before = find_plan(run_folder)
    if before is not None and before.version != PLAN_VERSION:
        raise ConfigError(
            where=str(run_folder), expected="a run submitted by this version", got="another version's code and notes",
            do="Give --new-code: it then goes on with the code of this checkout.",
        )  # fmt: skip
