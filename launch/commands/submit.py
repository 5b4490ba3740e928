"""`submit`: a job under Slurm; `shards`: jobs that build shard sets and wait for each other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from cclm.errors import ConfigError
from cclm.files.command_line import Commands
from cclm.files.describe import add_fields, read_fields
from cclm.files.shipped import CHECKOUT
from launch.commands.parsers import add_command, say
from launch.plan.network import NETWORKS
from launch.plan.recipe import (
    RECIPE_NAME,
    Recipe,
    find_recipe,
    folders_read,
    merge_recipe,
    program_of,
    read_recipe,
    recipes_of,
    run_folder_of,
    write_recipe,
)
from launch.plan.request import LAUNCHERS, PREFLIGHTS, SBATCH_OPTIONS, SlurmRequest, read_profile
from launch.plan.slurm_job import SlurmPlan, plan_job

SIZE = ("gpus_per_node", "tasks_per_node", "cpus_per_task", "time", *SBATCH_OPTIONS)
JOB = (*SIZE, "array", "concurrent", "after", "name")
SITE = ("container", "launcher", "network")
ATTEMPTS = ("preflight", "preflight_s", "replace_bad_nodes", "max_tries", "hang_s", "save_s")
CHOICES = {"launcher": LAUNCHERS, "preflight": PREFLIGHTS, "network": NETWORKS}


def add_to(commands: Commands) -> None:
    """Add `submit` and `shards`."""
    add_submit_options(add_command(commands, "submit [RECIPE] -- overrides …", execute, help="submit a job to Slurm"))
    text = "build shard sets as jobs that wait for each other"
    shards = add_command(commands, "shards RECIPE -- overrides …", submit_shards, help=text)
    add_submit_options(shards)
    build = shards.add_argument_group("the build")
    build.add_argument("--out", type=Path, required=True, help="each set becomes OUT/NAME")
    build.add_argument("--tasks", type=int, required=True, help="tasks of the array that reads the corpus")
    build.add_argument("--write-tasks", type=int, default=0, help="tasks of an array that writes shards; 0: the merge")


def add_options(parser: argparse.ArgumentParser, *, nodes: int | None) -> None:
    """Add the options that decide a job; `nodes` is the default of --nodes."""
    parser.add_argument(
        "recipe", nargs="?", help="name in (pretrain|finetune)/recipes/, or path; overrides follow `--`"
    )
    parser.add_argument(
        "--run-folder", type=Path, default=None, help="default: the recipe's; of a sweep runs/sweep-RECIPE"
    )
    job = parser.add_argument_group("the job")
    add_fields(job, SlurmRequest, ["nodes"], default=nodes)
    add_fields(job, SlurmRequest, JOB)
    job.add_argument("--sbatch", action="append", default=[], metavar="KEY[=VALUE]", help="any other option of sbatch")
    site = parser.add_argument_group("the site")
    site.add_argument("--profile", default=None, help="name in launch/profiles/ or path; default: $CCLM_PROFILE")
    add_fields(site, SlurmRequest, SITE, choices=CHOICES)
    add_fields(parser.add_argument_group("its attempts"), SlurmRequest, ATTEMPTS, choices=CHOICES)


def add_submit_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `submit` alone, too."""
    add_options(parser, nodes=1)
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, write and submit nothing")
    parser.add_argument("--new-code", action="store_true", help="replace the code of an earlier submission of this run")


def execute(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Plan the job; print the script, or submit."""
    plan, recipe = plan_from(options, command)
    from launch.slurm.submit import render, submit

    if options.dry_run:
        sys.stdout.write(render(plan))
        return 0
    job = submit(plan, say=say, recipe=recipe, new_code=options.new_code)
    say(f"log: {plan.log}")
    sys.stdout.write(f"{job}\n")
    return 0


def plan_from(options: argparse.Namespace, command: tuple[str, ...]) -> tuple[SlurmPlan, Recipe | None]:
    """Plan a training run from a recipe with overrides, or a job that runs any command."""
    recipe = None
    if options.recipe is not None:
        recipe = read_recipe(options.recipe, command, world_size_of(options), files_exist=options.after is None)
    elif not command:
        raise ConfigError(
            where="submit", expected="a recipe, or a command after `--`", got="neither",
            do="For example: python -m launch submit demo --nodes 2 --gpus-per-node 8",
        )  # fmt: skip
    named = options.run_folder or (None if recipe is None else run_folder_of(recipe[0]))
    if named is None:
        expected = "--run-folder, or a recipe with a run_folder"
        raise ConfigError(where="submit", expected=expected, got="neither", do="Name one.")
    return plan_run(options, Path(named).absolute(), recipe, command), recipe


def world_size_of(options: argparse.Namespace) -> int:
    """Return how many ranks the options ask for."""
    size = read_fields(options, ("nodes", *SIZE))
    return SlurmRequest(name="", run_folder=Path(), checkout=Path(), command=(), **size).world_size


def plan_run(
    options: argparse.Namespace,
    run_folder: Path,
    recipe: Recipe | None,
    command: tuple[str, ...] = (),
    *,
    code_folder: Path | None = None,
    name: str = "",
) -> SlurmPlan:
    """Plan a run in a folder, which goes into the recipe; without a recipe it is the command that runs."""
    if recipe is not None:
        check_copies(program_of(recipe[0]))
        recipe[0]["run_folder"] = str(run_folder)
        command = ("python", "-m", program_of(recipe[0]), "--recipe", str(run_folder / RECIPE_NAME))
    given = read_fields(options, ("nodes", *JOB, *SITE, *ATTEMPTS))
    given |= {"name": name or options.name or run_folder.name}
    if options.after is not None:
        given |= {"after": options.after.absolute()}
    request = SlurmRequest(
        run_folder=run_folder,
        checkout=Path.cwd(),
        code_folder=code_folder,
        command=command,
        is_training=recipe is not None,
        reads=() if recipe is None else folders_read(recipe[0], Path.cwd()),
        python=sys.executable,
        sbatch=dict(text.lstrip("-").partition("=")[::2] for text in options.sbatch),
        **given,
    )
    return plan_job(request, read_profile(options.profile))


def check_copies(program: str) -> None:
    """Raise ConfigError if the code of a program, which is copied for a job, is not in the working folder."""
    if not Path(program).is_dir():
        expected, do = "the checkout as working folder", f"cd {CHECKOUT}"
        raise ConfigError(where="submit", expected=expected, got=str(Path.cwd()), do=do)


def submit_shards(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Submit what is left to do: the reading, the writing if it has tasks of its own, and the merge."""
    if options.tasks < 1 or options.write_tasks < 0:
        raise ConfigError(
            where="shards", expected="--tasks of at least 1, --write-tasks of at least 0",
            got=f"--tasks {options.tasks} --write-tasks {options.write_tasks}", do="Give the number of tasks.",
        )  # fmt: skip
    from launch.slurm.restart import why_not_done
    from launch.slurm.submit import render, submit

    check_copies("shards")
    origin = find_recipe(options.recipe or "", recipes_of("shards"))
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
        plan, _ = plan_from(argparse.Namespace(**{**vars(options), **stage}), words)
        if options.dry_run:
            sys.stdout.write(render(plan))
        else:
            job = submit(plan, say=say, new_code=options.new_code)
            sys.stdout.write(f"{name} {job}\n")
        before = run
    return 0


def stages(options: argparse.Namespace, recipe: Path) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Yield name, number of tasks (0: one job without an array) and command of each stage."""
    workers = str(options.cpus_per_task or 1)
    where = (str(recipe), "--out", str(options.out.absolute()), "--workers", workers)
    yield "read", options.tasks, ("python", "-m", "shards", "build", *where, "--task", f"@TASK@/{options.tasks}")
    merge = ("python", "-m", "shards", "merge", *where)
    if options.write_tasks:
        yield "write", options.write_tasks, (*merge, "--task", f"@TASK@/{options.write_tasks}")
    yield "merge", 0, merge
