"""`resume`: submit a run again from its own folder."""

from __future__ import annotations

import argparse
import sys

from launch.commands.fields import add_fields, read_fields
from launch.commands.parsers import Commands, say
from launch.commands.submit import SIZE
from launch.plan.request import SlurmRequest
from launch.watch.runs import find_run

MAY_CHANGE = ("nodes", *SIZE, "concurrent", "max_tries", "save_s")


def add_to(commands: Commands) -> None:
    """Add `resume`."""
    parser = commands.add_parser("resume", help="submit a run again, from its own folder")
    parser.add_argument("run", metavar="RUN", help="name in runs/ or path")
    parser.add_argument("--new-code", action="store_true", help="copy the checkout's code anew")
    changes = parser.add_argument_group("what may differ from before (the plan is then made anew)")
    add_fields(changes, SlurmRequest, MAY_CHANGE, default=None)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Submit, and print the job's id."""
    from launch.control.resume import resume

    changes = read_fields(options, MAY_CHANGE)
    job, log = resume(find_run(options.run), changes, say=say, new_code=options.new_code)
    say(f"log: {log}")
    sys.stdout.write(f"{job}\n")
    return 0
