"""`run`: ranks on this machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from launch.commands.parsers import Commands, usage
from launch.plan.job import JobPlan, JobRequest, make_plan
from launch.plan.machine import this_machine


def add_to(commands: Commands) -> None:
    """Add `run`."""
    parser = commands.add_parser("run", help="run a command on N local ranks", usage=usage("run"))
    parser.add_argument("--grace-s", type=float, default=15.0, help="seconds from TERM to KILL once a rank has failed")
    parser.add_argument("--run-folder", type=Path, default=None, help="logs go to its logs/; default: runs/launch")
    add_options(parser)
    parser.set_defaults(carry_out=carry_out)


def add_options(parser: argparse._ActionsContainer) -> None:
    """Options that `plan` and `run` share."""
    parser.add_argument("--ranks", type=number_or_auto, default=None, help="processes; auto: one per GPU, or one")
    parser.add_argument("--threads-per-rank", type=number_or_auto, default=None, help="auto: usable cores / ranks")
    parser.add_argument("--port", type=number_or_auto, default=None, help="where the ranks meet; auto: a free one")
    parser.add_argument("--bind", choices=("auto", "none"), default="auto", help="auto: own cores for each rank")


def number_or_auto(text: str) -> int | None:
    """Parse a count; "auto" is None."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def plan_from(options: argparse.Namespace, command: tuple[str, ...]) -> JobPlan:
    """Plan the ranks."""
    request = JobRequest(
        command=command,
        folder=Path.cwd(),
        run_folder=(options.run_folder or Path("runs/launch")).absolute(),
        num_ranks=options.ranks,
        threads_per_rank=options.threads_per_rank,
        port=options.port,
        bind=options.bind == "auto",
    )
    return make_plan(request, this_machine(), os.environ)


def carry_out(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Run the ranks to their end."""
    from launch.local.run import run_plan

    return run_plan(plan_from(options, command), say=say, grace_s=options.grace_s).code


def say(line: str) -> None:
    """Write one line of the launcher's own."""
    sys.stderr.write(f"launch: {line}\n")
    sys.stderr.flush()
