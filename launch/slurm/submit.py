"""Submit a run, the same run again, or a sweep: `sbatch --test-only`, snapshot, script, `sbatch`; the job's id goes
into the history. What the cluster refuses has changed nothing in the run folder. A sweep is one job array, whose tasks
are whole runs with attempts of their own:

    RUN/slurm/job.sh (the array) ── task N ──> RUN/points/N/slurm/job.sh, an ordinary script of an ordinary run

A point that goes on by itself requeues its task alone; a point may also be submitted alone, like any run.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError
from cclm.files.atomic import replace_text
from cclm.run.status import DoneMarker
from launch.plan.recipe import Recipe, write_recipe
from launch.plan.request import changed_request
from launch.plan.slurm_job import (
    PLAN_NAME,
    PLAN_VERSION,
    SLURM_FOLDER,
    SlurmPlan,
    SweepPlan,
    array_tasks,
    find_plan,
    plan_job,
    read_plan,
)
from launch.plan.snapshot import CODE, HASH_NAME, take_snapshot
from launch.plan.sweep import POINTS, SWEEP_NAME, Sweep, check_same_sweep, is_sweep, points_not_done, write_sweep
from launch.slurm.history import Event, add_event
from launch.slurm.jobs import jobs_alive, live_jobs, points_alive, submit_script, told_by_slurm, would_take
from launch.slurm.node_health import EXCLUDED, excluded_nodes, left_out
from launch.slurm.restart import tasks_left, why_not_done
from launch.slurm.script import render, render_sweep

Say = Callable[[str], None]
"""Receives one line of progress at a time."""


def submit(plan: SlurmPlan, *, say: Say, recipe: Recipe | None = None, new_code: bool = False) -> str:
    """Submit a job; return its id. `recipe` becomes the run's own; `new_code`: replace the snapshot of an earlier
    submission. Raise ConfigError if the run is done, or has a job, CclmError if the cluster cannot run it."""
    _check_submittable(plan, new_code=new_code)
    options = _options_of(plan, say)
    say(would_take(render(plan)))
    code = take_snapshot(plan.request.checkout, plan.run_folder, anew=new_code)
    say(f"code {code[:12]} in {plan.code_folder}")
    _write_job(plan, recipe)
    return _send(plan, options)


def resume(run_folder: Path, changes: Mapping[str, Any], *, say: Say, new_code: bool = False) -> tuple[str, Path]:
    """Submit a run again from its own folder; return the job's id and the path of its log.

    `changes`: fields of its `SlurmRequest`; without any, the script is submitted as it lies there, whoever may have
    edited it. `new_code`: copy the checkout's code anew. Raise as `submit` does, and ConfigError if the run was never
    submitted.
    """
    plan = read_plan(run_folder)
    if new_code and plan.request.code_folder is not None:
        raise ConfigError(
            where="--new-code", expected="a run with code of its own", got="a point of a sweep, which shares it",
            do="Give the command of the sweep again, with --new-code.",
        )  # fmt: skip
    if not changes and not new_code:
        _check_submittable(plan, new_code=False)
        options = _options_of(plan, say)
        say(would_take(plan.script.read_text(encoding="utf-8")))
        return _send(plan, options), plan.log
    request, before = changed_request(plan.request, changes), plan.to_text().splitlines()
    changed = plan_job(request, plan.profile, stored=plan.request)
    for line in changed.to_text().splitlines():
        if line not in before:
            say(f"now: {line}")
    return submit(changed, say=say, new_code=new_code), changed.log


def _send(plan: SlurmPlan, options: Sequence[str]) -> str:
    job = submit_script(str(plan.script), *options)
    _note_submission(plan, job)
    return job


def _note_submission(plan: SlurmPlan, job: str) -> None:
    add_event(plan.run_folder, Event(event="submitted", job=job, by_user=True, reason=shlex.join(sys.argv[1:])))


def _write_job(plan: SlurmPlan, recipe: Recipe | None) -> None:
    """Write recipe, plan and script into the run folder."""
    for name in ("logs", SLURM_FOLDER, "status"):
        (plan.run_folder / name).mkdir(parents=True, exist_ok=True)
    if recipe is not None:
        write_recipe(plan.run_folder, *recipe)
    replace_text(plan.run_folder / SLURM_FOLDER / PLAN_NAME, plan.to_json() + "\n")
    replace_text(plan.script, render(plan))


def _options_of(plan: SlurmPlan, say: Say) -> list[str]:
    """What sbatch is told besides the script. Raise ConfigError if the run cannot be submitted now."""
    bad = _leave_out(plan, excluded_nodes(plan.run_folder), str(plan.run_folder / EXCLUDED), say)
    return [*_dependency(plan, say), *_array_tasks(plan, say), *bad]


def _leave_out(plan: SlurmPlan, found: Sequence[str], source: str, say: Say) -> list[str]:
    """Options that leave out bad nodes, where bad nodes are to be replaced. `source`: the file that names them."""
    if not found or not plan.request.replace_bad_nodes:
        return []
    say(f"leaves out {', '.join(found)}, found bad before; remove {source} to use them again")
    return [f"--exclude={left_out(plan, found)}"]


def _dependency(plan: SlurmPlan, say: Say) -> list[str]:
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


def _array_tasks(plan: SlurmPlan, say: Say) -> list[str]:
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
    return [f"--array={array_tasks(left, count, plan.request.concurrent)}"]


def _check_submittable(plan: SlurmPlan, *, new_code: bool) -> None:
    """Raise ConfigError if the run is done, has a job, is one of another version, or a sweep lives in its folder."""
    run_folder, choose = plan.run_folder, "Choose another --run-folder for a new run."
    if is_sweep(run_folder):
        raise ConfigError(where=str(run_folder), expected="a folder for one run", got=f"a {SWEEP_NAME}", do=choose)
    done, before = DoneMarker(run_folder).read(), find_plan(run_folder)
    jobs = live_jobs(run_folder)[run_folder] if done is None and before is not None else []
    if jobs:
        raise ConfigError(
            where=str(run_folder), expected="a run without a job", got=f"job {jobs[0].job} is {jobs[0]}",
            do=f"Wait for it, or end it: python -m launch cancel {run_folder}",
        )  # fmt: skip
    # Of an array, `_array_tasks` sees what is left; a command leaves no marker, its last attempt tells.
    if done is not None or (before is not None and not plan.request.array and not why_not_done(run_folder)):
        got = f"done at step {done.step}" if done is not None and plan.request.is_training else "done"
        raise ConfigError(where=str(run_folder), expected="a run that is not done", got=got, do=choose)
    if not new_code:
        _check_version(run_folder)


def _check_version(run_folder: Path) -> None:
    """Raise ConfigError if the code that lies in a run folder, or is shared by it, does not read our notes."""
    before = find_plan(run_folder)
    if before is not None and before.version != PLAN_VERSION:
        raise ConfigError(
            where=str(run_folder), expected="a run submitted by this version", got="another version's code and notes",
            do="Give --new-code: it then goes on with the code of this checkout.",
        )  # fmt: skip


def submit_sweep(plan: SweepPlan, sweep: Sweep, recipes: Sequence[Recipe], *, say: Say, new_code: bool = False) -> str:
    """Submit the points that are not done and have no job; return the array's id. `new_code`: replace the snapshot of
    an earlier submission. Raise ConfigError if another sweep has this folder, or no point is left, CclmError if the
    cluster cannot run it."""
    check_same_sweep(plan.folder, sweep)
    first = plan.points[0]
    for point in plan.points if not new_code else ():
        _check_version(point.run_folder)
    left = _points_to_submit(plan, say, new_code=new_code)
    # A node that one point found bad is bad for all.
    bad = sorted({node for point in plan.points for node in excluded_nodes(point.run_folder)})
    source = str(plan.folder / POINTS / "*" / EXCLUDED)
    options = [*_dependency(first, say), *_leave_out(first, bad, source, say)]
    array = render_sweep(plan)
    say(would_take(array))
    code = take_snapshot(first.request.checkout, plan.folder, anew=new_code)
    say(f"code {code[:12]} in {plan.folder / CODE}")
    write_sweep(plan.folder, sweep, sys.argv[1:])
    for number in left:
        _write_job(plan.points[number], recipes[number])
        for name in (CODE, HASH_NAME):  # what the point was given when it was submitted alone goes
            link = plan.points[number].run_folder / name
            if not link.is_symlink():
                shutil.rmtree(link, ignore_errors=True)
                link.unlink(missing_ok=True)
                link.symlink_to(Path("..") / ".." / name)
    replace_text(plan.script, array)
    # Held until the history of every point knows of the job: an attempt must not begin before that.
    job = submit_script(
        str(plan.script), "--hold", f"--array={array_tasks(left, len(plan.points), plan.concurrent)}", *options
    )
    for number in left:
        _note_submission(plan.points[number], f"{job}_{number}")
    if "hold" not in plan.directives:
        advice = f"It waits on hold: scontrol release {job}, or scancel {job}."
        told_by_slurm(["scontrol", "release", job], expected=f"job {job} to be released", do=advice)
    return job


def _points_to_submit(plan: SweepPlan, say: Say, *, new_code: bool) -> list[int]:
    """Points that are neither done nor have a job."""
    count = len(plan.points)
    open_points, alive = points_not_done(plan.folder, count), points_alive(plan.folder, count)
    busy = {number: job for number, job in alive.items() if number in open_points}
    if busy and new_code:
        raise ConfigError(
            where="--new-code", expected="no job that runs the present code", got=", ".join(busy.values()),
            do="Wait for them, or end them: launch cancel.",
        )  # fmt: skip
    left = [number for number in open_points if number not in busy]
    if not left:
        still = f"{len(busy)} still with a job, the others done" if busy else "all are done"
        raise ConfigError(
            where=str(plan.folder), expected="points that are not done and have no job", got=still,
            do=f"See them: python -m launch sweep-results {plan.folder}",
        )  # fmt: skip
    for number, job in busy.items():
        say(f"point {number} has job {job}")
    if len(left) < count:
        say(f"point(s) {', '.join(map(str, left))} of {count}")
    return left
