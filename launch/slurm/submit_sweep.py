"""Submit a sweep: one job array, whose tasks are whole runs with attempts of their own.

    RUN/slurm/job.sh (the array) ── task N ──> RUN/points/N/slurm/job.sh, an ordinary script of an ordinary run

A point that goes on by itself requeues its task alone; a point may also be submitted alone, like any run.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cclm.errors import ConfigError
from cclm.files.atomic import replace_text
from launch.plan.recipe import Recipe
from launch.plan.slurm_job import SweepPlan
from launch.plan.snapshot import CODE, HASH_NAME, take_snapshot
from launch.plan.sweep import POINTS, Sweep, check_same_sweep, points_not_done, write_sweep
from launch.slurm.client import submit_script, told_by_slurm, would_take
from launch.slurm.history import Event, add_event
from launch.slurm.jobs import points_alive
from launch.slurm.node_health import EXCLUDED, excluded_nodes
from launch.slurm.script import render_sweep
from launch.slurm.submit import Say, check_version, dependency, leave_out, write_job


def submit_sweep(plan: SweepPlan, sweep: Sweep, recipes: Sequence[Recipe], *, say: Say, new_code: bool = False) -> str:
    """Submit the points that are not done and have no job; return the array's id. `new_code`: replace the snapshot of
    an earlier submission. Raise ConfigError if another sweep has this folder, or no point is left, CclmError if the
    cluster cannot run it."""
    check_same_sweep(plan.folder, sweep)
    for point in plan.points if not new_code else ():
        check_version(point.run_folder)
    left = points_to_submit(plan, say, new_code=new_code)
    # A node that one point found bad is bad for all.
    bad = sorted({node for point in plan.points for node in excluded_nodes(point.run_folder)})
    source = str(plan.folder / POINTS / "*" / EXCLUDED)
    options = [*dependency(plan.points[0], say), *leave_out(plan.points[0], bad, source, say)]
    code = take_snapshot(plan.points[0].request.checkout, plan.folder, anew=new_code)
    say(f"code {code[:12]} in {plan.folder / CODE}")
    write_sweep(plan.folder, sweep, sys.argv[1:])
    for number in left:
        write_job(plan.points[number], recipes[number])
        share_code(plan.points[number].run_folder)
    plan.script.parent.mkdir(parents=True, exist_ok=True)
    replace_text(plan.script, render_sweep(plan))
    say(would_take(str(plan.script)))
    return _submit_held(plan, left, options)


def share_code(point: Path) -> None:
    """Let a point use the code of its sweep; what it was given when it was submitted alone goes."""
    for name in (CODE, HASH_NAME):
        link = point / name
        if link.is_symlink():
            continue
        if link.is_dir():
            shutil.rmtree(link)
        else:
            link.unlink(missing_ok=True)
        link.symlink_to(Path("..") / ".." / name)


def points_to_submit(plan: SweepPlan, say: Say, *, new_code: bool) -> list[int]:
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
    if len(left) < len(plan.points):
        say(f"point(s) {', '.join(map(str, left))} of {len(plan.points)}")
    return left


def _submit_held(plan: SweepPlan, left: Sequence[int], options: Sequence[str]) -> str:
    """Submit on hold, and let go when the history of every point knows of it: an attempt must not begin before that."""
    job = submit_script(str(plan.script), "--hold", f"--array={plan.array_tasks(left)}", *options)
    for number in left:
        event = Event(event="submitted", job=f"{job}_{number}", by_user=True, reason=shlex.join(sys.argv[1:]))
        add_event(plan.points[number].run_folder, event)
    if "hold" in plan.directives:
        return job
    advice = f"It waits on hold: scontrol release {job}, or scancel {job}."
    told_by_slurm(["scontrol", "release", job], expected=f"job {job} to be released", do=advice)
    return job
