"""`plan`: print what `run`, or with --nodes `submit`, would do."""

from __future__ import annotations

import argparse
import sys

from launch.commands import local, slurm
from launch.commands.parsers import Commands, usage


def add_to(commands: Commands) -> None:
    """Add `plan`."""
    parser = commands.add_parser(
        "plan", help="print what `run`, or with --nodes `submit`, would do", usage=usage("plan")
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    local.add_options(parser.add_argument_group("ranks on this machine"))
    slurm.add_options(parser, nodes=None)
    parser.set_defaults(carry_out=carry_out)


def carry_out(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print the plan."""
    plan = local.plan_from(options, command) if options.nodes is None else slurm.plan_from(options, command)[0]
    sys.stdout.write((plan.to_json() if options.json else plan.to_text()) + "\n")
    return 0
