"""`run` and `plan`: ranks on this machine, and what `run` or `submit` would do."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cclm.errors import ConfigError
from cclm.files.command_line import Commands
from cclm.run.launcher import started_by
from cclm.run.machine import this_machine, why_port_is_taken
from launch.commands import submit
from launch.commands.parsers import add_command, say
from launch.plan.job import JobPlan, make_plan
from launch.plan.network import AUTO, NETWORKS
from launch.plan.recipe import recipe_of, run_folder_of

DEFAULT_FOLDER = Path("runs/launch")


def add_to(commands: Commands) -> None:
    """Add `plan` and `run`."""
    text = "print what `run`, or `submit` (--nodes), would do"
    plan = add_command(commands, "plan -- command …", show_plan, help=text)
    plan.add_argument("--json", action="store_true", help="print JSON")
    add_options(plan.add_argument_group("ranks on this machine"))
    submit.add_options(plan, nodes=None)
    run = add_command(commands, "run -- command …", run_ranks, help="run a command on N local ranks")
    where = f"logs go to its logs/; default: the recipe's, or {DEFAULT_FOLDER}"
    run.add_argument("--run-folder", type=Path, default=None, help=where)
    add_options(run)
    run.add_argument("--network", choices=NETWORKS, default=AUTO, help="settings for a fabric; auto: loopback alone")


def add_options(parser: argparse._ActionsContainer) -> None:
    """Add the options of `run` that `plan` and `sweep` have, too."""
    parser.add_argument("--ranks", type=number_or_auto, default=None, help="processes; auto: one per GPU, or one")
    parser.add_argument("--threads-per-rank", type=number_or_auto, default=None, help="auto: usable cores / ranks")
    parser.add_argument("--port", type=number_or_auto, default=None, help="where the ranks meet; auto: a free one")
    parser.add_argument("--bind", choices=("auto", "none"), default="auto", help="auto: own cores for each rank")
    parser.add_argument("--grace-s", type=float, default=15.0, help="seconds from TERM to KILL once a rank has failed")


def number_or_auto(text: str) -> int | None:
    """Parse a count; "auto" is None."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def plan_from(options: argparse.Namespace, command: tuple[str, ...]) -> JobPlan:
    """Plan the ranks. The run folder is what the user says, or what the recipe of the command says."""
    machine = this_machine()
    num_ranks = options.ranks if options.ranks is not None else machine.usual_ranks
    recipe = recipe_of(command, num_ranks)
    folder = options.run_folder or (run_folder_of(recipe[0]) if recipe else None) or DEFAULT_FOLDER
    return make_plan(
        command,
        machine,
        os.environ,
        folder=Path.cwd(),
        run_folder=Path(folder).absolute(),
        num_ranks=num_ranks,
        threads_per_rank=options.threads_per_rank,
        port=options.port,
        bind=options.bind == "auto",
        network=options.network or AUTO,
    )


def show_plan(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print the plan of a job here, or with --nodes under Slurm."""
    if options.nodes is None and options.recipe is not None:
        raise ConfigError(
            where="plan", expected="--nodes with a recipe", got=f"recipe {options.recipe} alone",
            do=f"For example: python -m launch plan {options.recipe} --nodes 2",
        )  # fmt: skip
    plan = plan_from(options, command) if options.nodes is None else submit.plan_from(options, command)[0]
    sys.stdout.write((plan.to_json() if options.json else plan.to_text()) + "\n")
    return 0


def run_ranks(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Run the ranks of one job to their end, in a folder that is this job's alone; return the launcher's code."""
    from launch.local.run import own_folder, run_plan

    check_one_launcher()
    plan = plan_from(options, command)
    if not options.grace_s >= 0:  # nan is not, either: with it no rank would ever be killed
        expected, do = "--grace-s of at least 0", "Leave it out for 15 seconds."
        raise ConfigError(expected=expected, got=f"{options.grace_s:g}", do=do)
    if options.port is not None and (why := why_port_is_taken(options.port)):
        raise ConfigError(
            where="--port", expected="a port that is free", got=f"{options.port}: {why}",
            do="Leave it out (a free one is chosen), or end who listens there: `ss -ltnp`.",
        )  # fmt: skip
    is_named = options.run_folder is not None or plan.run_folder != DEFAULT_FOLDER.absolute()
    with own_folder(plan.run_folder, is_named=is_named) as folder:
        if folder != plan.run_folder:
            say(f"another job uses {plan.run_folder}: this one's logs are in {folder}/logs")
            plan = plan_from(argparse.Namespace(**{**vars(options), "run_folder": folder}), command)
        return run_plan(plan, say=say, grace_s=options.grace_s).code


def check_one_launcher() -> None:
    """Raise ConfigError if another launcher has started this one several times: each would start the whole job."""
    found = started_by(os.environ)
    if found is not None:
        got = f"process {found.rank} of {found.size} that {found.launcher} started"
        raise ConfigError(
            where="run", expected="one launcher", got=got,
            do="Start `launch run` once, without it; or the program itself under it (under Slurm: `launch submit`). "
            "In a shell that only inherited the variables: unset RANK WORLD_SIZE.",
        )  # fmt: skip
