"""`shards`: build shard sets as jobs, read by an array, then written by a merge that waits for it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from cclm.errors import ConfigError
from launch.commands import submit as submit_command
from launch.commands.parsers import Commands, say, usage
from launch.plan.recipe import RECIPE_NAME, find_recipe, merge_recipe, write_recipe
from launch.slurm.restart import why_not_done
from launch.slurm.submit import submit


def add_to(commands: Commands) -> None:
    """Add `shards`, with the options of a build and all of `submit`."""
    parser = commands.add_parser("shards", help="build shard sets as jobs", usage=usage("shards RECIPE", "overrides"))
    submit_command.add_submit_options(parser)
    build = parser.add_argument_group("the build")
    build.add_argument("--out", type=Path, required=True, help="each set becomes OUT/NAME")
    build.add_argument("--tasks", type=int, required=True, help="tasks of the array that reads the corpus")
    build.add_argument("--write-tasks", type=int, default=0, help="tasks of an array that writes shards; 0: the merge")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Submit what is left to do: the reading, the writing if it has tasks of its own, and the merge."""
    if options.tasks < 1 or options.write_tasks < 0:
        raise ConfigError(
            where="shards", expected="--tasks of at least 1, --write-tasks of at least 0",
            got=f"--tasks {options.tasks} --write-tasks {options.write_tasks}", do="Give the number of tasks.",
        )  # fmt: skip
    origin = find_recipe(options.recipe or "", Path("shards/recipes"))
    folder = (options.run_folder or Path("runs") / f"shards-{options.out.name}").absolute()
    content = merge_recipe(origin, command)
    recipe = folder / RECIPE_NAME
    if recipe.exists() and merge_recipe(recipe, ()) != content:
        raise ConfigError(
            where=str(recipe), expected="the recipe of the earlier submission", got="another one",
            do="Choose another --run-folder and --out, or remove both folders.",
        )  # fmt: skip
    if not options.dry_run:
        recipe = write_recipe(folder, content, origin)
    before: Path | None = options.after
    for name, tasks, words in stages(options, recipe):
        run = folder / name
        if why_not_done(run) == "":
            say(f"{name}: done already")
            continue
        stage = {"recipe": None, "run_folder": run, "array": tasks, "after": before, "preflight": "none"}
        plan, _ = submit_command.plan_from(argparse.Namespace(**{**vars(options), **stage}), words)
        if options.dry_run:
            sys.stdout.write(submit_command.script_of(plan))
        else:
            job = submit(plan, say=say, new_code=options.new_code)
            sys.stdout.write(f"{name} {job}\n")
        before = run
    return 0


def stages(options: argparse.Namespace, recipe: Path) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Yield name, number of tasks (0: one job without an array) and command of each stage."""
    workers = str(options.cpus_per_task or 1)
    where = (str(recipe), "--out", str(options.out.absolute()), "--workers", workers)
    share = "--task", "@TASK@/{}"
    yield "read", options.tasks, ("python", "-m", "shards", "build", *where, share[0], share[1].format(options.tasks))
    merge = ("python", "-m", "shards", "merge", *where)
    if options.write_tasks:
        yield "write", options.write_tasks, (*merge, share[0], share[1].format(options.write_tasks))
    yield "merge", 0, merge
