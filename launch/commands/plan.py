"""`plan`: print what `run`, or with --nodes `submit`, would do."""

from __future__ import annotations

import argparse
import sys

from cclm.errors import ConfigError
from launch.commands import run as run_command
from launch.commands import submit
from launch.commands.parsers import Commands, usage
from launch.plan.job import JobPlan
from launch.plan.slurm_job import SlurmPlan


def add_to(commands: Commands) -> None:
    """Add `plan`."""
    parser = commands.add_parser("plan", help="print what `run`, or `submit` (--nodes), would do", usage=usage("plan"))
    parser.add_argument("--json", action="store_true", help="print JSON")
    run_command.add_options(parser.add_argument_group("ranks on this machine"))
    submit.add_options(parser, nodes=None)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print the plan."""
    plan = _plan(options, command)
    sys.stdout.write((plan.to_json() if options.json else plan.to_text()) + "\n")
    return 0


def _plan(options: argparse.Namespace, command: tuple[str, ...]) -> JobPlan | SlurmPlan:
    if options.nodes is not None:
        return submit.plan_from(options, command)[0]
    if options.recipe is not None:
        raise ConfigError(
            where="plan", expected="--nodes with a recipe", got=f"recipe {options.recipe} alone",
            do=f"For example: python -m launch plan {options.recipe} --nodes 2",
        )  # fmt: skip
    return run_command.plan_from(options, command)
