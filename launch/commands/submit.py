"""`submit`: a job under Slurm."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError
from launch.commands.parsers import Commands, usage
from launch.commands.run import say
from launch.plan.profile import read_profile
from launch.plan.request import SlurmRequest
from launch.plan.slurm_job import SlurmPlan, plan_job
from launch.plan.snapshot import RECIPE_NAME, find_recipe, folders_named_in, merge_recipe

LAUNCHERS = ("srun", "torchrun")
PREFLIGHTS = ("full", "quick", "none")


def add_to(commands: Commands) -> None:
    """Add `submit`."""
    parser = commands.add_parser("submit", help="submit a job to Slurm", usage=usage("submit [RECIPE]", "overrides"))
    add_submit_options(parser)
    parser.set_defaults(carry_out=carry_out)


def add_options(parser: argparse.ArgumentParser, *, nodes: int | None) -> None:
    """Options that decide a job; `nodes` is the default of --nodes."""
    parser.add_argument("recipe", nargs="?", help="name in pretrain/recipes/ or path; overrides follow `--`")
    parser.add_argument(
        "--run-folder", type=Path, default=None, help="default: the recipe's; of a sweep runs/sweep-RECIPE"
    )
    job = parser.add_argument_group("the job")
    job.add_argument("--nodes", type=int, default=nodes)
    job.add_argument("--gpus-per-node", type=int, default=0, help="0: ranks on the CPU")
    job.add_argument("--tasks-per-node", type=int, default=None, help="ranks on a node; default: one per GPU, or one")
    job.add_argument("--cpus-per-task", type=int, default=None, help="cores of a rank; default: the profile's")
    job.add_argument("--time", default=SlurmRequest.time, help="limit, [days-]hours:minutes:seconds")
    for name in ("partition", "account", "qos", "constraint", "exclude"):
        job.add_argument(f"--{name}", default=None, help="as for sbatch")
    job.add_argument("--sbatch", action="append", default=[], metavar="KEY[=VALUE]", help="any other option of sbatch")
    job.add_argument("--array", type=int, default=0, metavar="N", help="N elements; @TASK@ is an element's number")
    job.add_argument("--concurrent", type=int, default=None, help="elements that may run at a time")
    job.add_argument("--after", type=Path, default=None, metavar="RUN", help="begin when this run is done")
    job.add_argument("--name", default=None, help="name of the job; default: the run folder's")
    site = parser.add_argument_group("the site")
    site.add_argument("--profile", default=None, help="name in launch/profiles/ or path; default: $CCLM_PROFILE")
    site.add_argument("--container", default=None, help="image; the profile says how it is run")
    site.add_argument("--launcher", choices=LAUNCHERS, default="srun", help="who starts the ranks on a node")
    life = parser.add_argument_group("how it lives")
    life.add_argument("--preflight", choices=PREFLIGHTS, default="full", help="quick: nothing that imports torch")
    life.add_argument("--replace-bad-nodes", action="store_true", help="submit again without nodes found bad")
    life.add_argument("--max-tries", type=int, default=3, help="lives without a newer checkpoint before it gives up")
    life.add_argument("--hang-s", type=float, default=1800, help="kill a rank that is silent for so long; 0: never")
    life.add_argument("--save-s", type=int, default=300, help="seconds before the time limit at which it saves")


def add_submit_options(parser: argparse.ArgumentParser) -> None:
    """Options of `submit` alone."""
    add_options(parser, nodes=1)
    parser.add_argument("--dry-run", action="store_true", help="print the batch script, write and submit nothing")
    parser.add_argument("--new-code", action="store_true", help="replace the code of an earlier submission of this run")


def carry_out(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Plan the job; print the script, or submit."""
    plan, recipe = plan_from(options, command)
    if options.dry_run:
        sys.stdout.write(script_of(plan))
        return 0
    from launch.slurm.submit import submit

    job = submit(plan, say=say, recipe=recipe, new_code=options.new_code)
    say(f"log: {plan.log}")
    sys.stdout.write(f"{job}\n")
    return 0


def script_of(plan: SlurmPlan) -> str:
    """Return the batch script of a plan."""
    from launch.slurm.script import render

    return render(plan)


Recipe = tuple[dict[str, Any], Path]


def plan_from(options: argparse.Namespace, command: tuple[str, ...]) -> tuple[SlurmPlan, Recipe | None]:
    """Plan a training run from a recipe with overrides, or a job that runs any command."""
    recipe = None if options.recipe is None else read_recipe(options.recipe, command)
    if recipe is None and not command:
        raise ConfigError(
            where="submit", expected="a recipe, or a command after `--`", got="neither",
            do="For example: python -m launch submit demo --nodes 2 --gpus-per-node 8",
        )  # fmt: skip
    return plan_run(options, _run_folder(options, recipe), recipe, command), recipe


def read_recipe(name: str, overrides: tuple[str, ...]) -> Recipe:
    """Read a training recipe with its overrides."""
    origin = find_recipe(name, Path("pretrain/recipes"))
    return merge_recipe(origin, overrides), origin


def plan_run(
    options: argparse.Namespace,
    run_folder: Path,
    recipe: Recipe | None,
    command: tuple[str, ...] = (),
    *,
    code_folder: Path | None = None,
) -> SlurmPlan:
    """Plan a run in a folder, which goes into the recipe; without a recipe it is the command that runs."""
    if recipe is not None:
        recipe[0]["run_folder"] = str(run_folder)
        command = ("python", "-m", "pretrain", "--recipe", str(run_folder / RECIPE_NAME))
    request = SlurmRequest(
        name=options.name or run_folder.name,
        run_folder=run_folder,
        checkout=Path.cwd(),
        code_folder=code_folder,
        command=command,
        is_training=recipe is not None,
        reads=() if recipe is None else tuple(folders_named_in(recipe[0].get("data") or {}, Path.cwd())),
        array=options.array,
        concurrent=options.concurrent,
        after=None if options.after is None else options.after.absolute(),
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        tasks_per_node=options.tasks_per_node,
        cpus_per_task=options.cpus_per_task,
        time=options.time,
        partition=options.partition,
        account=options.account,
        qos=options.qos,
        constraint=options.constraint,
        exclude=options.exclude,
        container=options.container,
        sbatch=dict(text.lstrip("-").partition("=")[::2] for text in options.sbatch),
        launcher=options.launcher,
        preflight=options.preflight,
        replace_bad_nodes=options.replace_bad_nodes,
        max_tries=options.max_tries,
        hang_s=options.hang_s,
        save_s=options.save_s,
        python=sys.executable,
        host_python=sys.executable,
    )
    return plan_job(request, read_profile(options.profile))


def _run_folder(options: argparse.Namespace, recipe: Recipe | None) -> Path:
    if options.run_folder is not None:
        return Path(options.run_folder).absolute()
    named = None if recipe is None else recipe[0].get("run_folder")
    if named is None:
        raise ConfigError(
            where="submit", expected="--run-folder, or a recipe with a run_folder", got="neither", do="Name one."
        )
    return Path(str(named)).absolute()
