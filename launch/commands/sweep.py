"""`sweep`: one recipe at many points, as a job array or one after another; `sweep-results`: a table of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cclm.errors import ConfigError
from cclm.files.command_line import Commands
from cclm.run.stop import STOPPED_CODE
from launch.commands import run, submit
from launch.commands.parsers import add_command, say
from launch.local.run import STOP_SIGNALS
from launch.plan import sweep
from launch.plan.recipe import Recipe, as_options, check_recipe, program_of, read_recipe, write_recipe
from launch.plan.slurm_job import SweepPlan
from launch.plan.sweep import Sweep, point_folder

ENDED_BY_REQUEST = frozenset({STOPPED_CODE, *(128 + number for number in STOP_SIGNALS)})
"""Codes of a run that was asked to stop: saved, or ended by HUP, INT or TERM."""


def add_to(commands: Commands) -> None:
    """Add `sweep`, with all options of `submit`, and `sweep-results`."""
    text = "train one recipe at many points"
    parser = add_command(commands, "sweep RECIPE -- overrides …", execute, help=text)
    submit.add_submit_options(parser)
    points = parser.add_argument_group("the points")
    points.add_argument("--vary", action="append", default=[], metavar="KEY=VALUE,VALUE", help="values in YAML")
    points.add_argument("--points", type=Path, default=None, metavar="FILE", help="YAML list of overrides, one a point")
    points.add_argument("--local", action="store_true", help="here, one after another, as `launch run` does")
    run.add_options(parser.add_argument_group("ranks of a point on this machine"))

    table = add_command(commands, "sweep-results", show, help="a table of a sweep's points")
    table.add_argument("folder", type=Path, metavar="RUN", help="run folder of the sweep")
    table.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="of log.jsonl or results.json (a.b)"
    )
    table.add_argument("--sort", metavar="NAME", help="loss, step or a metric; the smallest first")
    table.add_argument("--descending", action="store_true", help="the largest first")
    form = table.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--csv", action="store_true")


def execute(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Submit what is left to do, do it here, or print what would be done."""
    if options.recipe is None or options.array:
        raise ConfigError(
            where="sweep", expected="a recipe, and points instead of --array", got=f"recipe {options.recipe}, "
            f"--array {options.array}", do="For example: launch sweep demo --vary seed=1,2",
        )  # fmt: skip
    num_ranks = (options.ranks or 1) if options.local else submit.world_size_of(options)
    content, origin = read_recipe(options.recipe, command, num_ranks)
    content.pop(sweep.OURS, None)
    asked = Sweep(recipe=str(origin), base=content, points=sweep.make_points(options.vary, options.points))
    for point in asked.points:
        check_recipe(origin, [*command, *as_options(point)], num_ranks)
    folder = (options.run_folder or Path("runs") / f"sweep-{origin.stem}").absolute()
    recipes = [(asked.content(number), origin) for number in range(len(asked.points))]
    if options.local:
        return run_here(options, folder, asked, recipes)
    name = options.name or folder.name
    points = (
        submit.plan_run(
            options, point_folder(folder, number), recipe, code_folder=folder / "code", name=f"{name}.{number}"
        )
        for number, recipe in enumerate(recipes)
    )
    plan = SweepPlan(folder=folder, name=name, points=tuple(points), concurrent=options.concurrent)
    from launch.slurm.submit import render, render_sweep, submit_sweep

    if options.dry_run:
        parts = (asked.to_text(), render_sweep(plan), f"# {plan.points[0].script}", render(plan.points[0]))
        sys.stdout.write("\n\n".join(part.rstrip("\n") for part in parts) + "\n")
        return 0
    job = submit_sweep(plan, asked, recipes, say=say, new_code=options.new_code)
    say(f"logs: {folder}/{sweep.POINTS}/N/logs; results: python -m launch sweep-results {folder}")
    sys.stdout.write(f"{job}\n")
    return 0


def run_here(options: argparse.Namespace, folder: Path, asked: Sweep, recipes: list[Recipe]) -> int:
    """Run the points that are not done one after another; 1 if one of them fails."""
    if options.dry_run:
        sys.stdout.write(asked.to_text() + "\n")
        return 0
    run.check_one_launcher()
    sweep.check_same_sweep(folder, asked)
    sweep.write_sweep(folder, asked, sys.argv[1:])
    failed = []
    for number in sweep.points_not_done(folder, len(recipes)):
        say(f"point {number} of {len(recipes)}: {sweep.said(asked.points[number])}")
        run_folder, (content, origin) = point_folder(folder, number), recipes[number]
        path = write_recipe(run_folder, {**content, sweep.OURS: str(run_folder)}, origin)
        own = argparse.Namespace(**{**vars(options), "run_folder": run_folder})
        code = run.run_ranks(own, ("python", "-m", program_of(content), "--recipe", str(path)))
        if code in ENDED_BY_REQUEST:
            say("asked to stop: the same command goes on")
            return code
        failed += [number] if code else []
    if failed:
        say(f"point(s) {', '.join(map(str, failed))} failed; the same command tries them again")
    return 1 if failed else 0


def show(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print the table of results."""
    from launch.watch.results import read_rows, sort_rows, to_csv, to_json, to_text

    metrics = list(dict.fromkeys([*options.metric, *([options.sort] if options.sort else [])]))
    rows = read_rows(options.folder.absolute(), metrics)
    if options.sort:
        rows = sort_rows(rows, options.sort, descending=options.descending)
    write = to_json if options.json else to_csv if options.csv else to_text
    sys.stdout.write(write(rows))
    return 0
