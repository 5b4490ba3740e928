"""`plan`: print what `run`, or with --nodes `submit`, or with --hostfile `ssh`, would do."""

from __future__ import annotations

import argparse
import sys

from cclm.errors import ConfigError
from launch.commands import local, slurm, ssh
from launch.commands.parsers import Commands, usage
from launch.plan import JobPlan
from launch.slurm.plan import SlurmPlan


def add_to(commands: Commands) -> None:
    """Add `plan`."""
    parser = commands.add_parser(
        "plan", help="print what `run`, `submit` (--nodes) or `ssh` (--hostfile) would do", usage=usage("plan")
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    local.add_options(parser.add_argument_group("ranks on this machine"))
    slurm.add_options(parser, nodes=None)
    ssh.add_options(parser.add_argument_group("ranks on plain hosts, which are asked what they have"))
    parser.set_defaults(carry_out=carry_out)


def carry_out(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print the plan."""
    plan = _plan(options, command)
    sys.stdout.write((plan.to_json() if options.json else plan.to_text()) + "\n")
    return 0


def _plan(options: argparse.Namespace, command: tuple[str, ...]) -> JobPlan | SlurmPlan:
    has_hosts = options.hostfile is not None or options.hosts is not None
    others = {"--ranks": options.ranks, "--nodes": options.nodes, "a recipe": options.recipe}
    complaints = [name for name, value in others.items() if value is not None]
    if has_hosts and complaints:
        raise ConfigError(
            where="plan", expected="one place to run", got=f"hosts with {', '.join(complaints)}",
            do="With hosts: --ranks-per-host, and the command after `--`.",
        )  # fmt: skip
    if has_hosts:
        with ssh.planned(options, command) as (plan, _):
            return plan
    if options.nodes is None and options.recipe is not None:
        raise ConfigError(
            where="plan", expected="--nodes with a recipe", got=f"recipe {options.recipe} alone",
            do=f"For example: python -m launch plan {options.recipe} --nodes 2",
        )  # fmt: skip
    return local.plan_from(options, command) if options.nodes is None else slurm.plan_from(options, command)[0]
