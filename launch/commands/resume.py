"""`resume`: submit a run again from its own folder."""

from __future__ import annotations

import argparse
import sys

from launch.commands.parsers import Commands
from launch.commands.run import say
from launch.watch.find_runs import find_run

NUMBERS = {
    "nodes": "of the job",
    "gpus-per-node": "GPUs on a node",
    "tasks-per-node": "ranks on a node",
    "cpus-per-task": "cores of a rank",
    "concurrent": "elements of an array that may run at a time",
    "max-tries": "lives without a newer checkpoint before it gives up",
    "save-s": "seconds before the time limit at which it saves",
}
WORDS = ("time", "partition", "account", "qos", "constraint", "exclude")


def add_to(commands: Commands) -> None:
    """Add `resume`."""
    parser = commands.add_parser("resume", help="submit a run again, from its own folder")
    parser.add_argument("run", metavar="RUN", help="name in runs/ or path")
    parser.add_argument("--new-code", action="store_true", help="copy the checkout's code anew")
    changes = parser.add_argument_group("what may differ from before (the plan is then made anew)")
    for name, meaning in NUMBERS.items():
        changes.add_argument(f"--{name}", type=int, default=None, help=meaning)
    for name in WORDS:
        changes.add_argument(f"--{name}", default=None, help="as for sbatch")
    parser.set_defaults(carry_out=carry_out)


def carry_out(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Submit, and print the job's id."""
    from launch.control.resume import resume

    given = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in (*NUMBERS, *WORDS)}
    changes = {name: value for name, value in given.items() if value is not None}
    job, log = resume(find_run(options.run), changes, say=say, new_code=options.new_code)
    say(f"log: {log}")
    sys.stdout.write(f"{job}\n")
    return 0
