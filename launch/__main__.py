"""`python -m launch COMMAND`: see docs/launch.md and docs/slurm.md. Starts at once: no torch here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cclm.errors import CclmError
from launch.commands import local, shards, slurm

USAGE_CODE = 2


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line, without the part after `--`."""
    parser = argparse.ArgumentParser(prog="python -m launch", description=__doc__)
    commands = parser.add_subparsers(dest="action", required=True)
    plan = commands.add_parser(
        "plan", help="print what `run`, or with --nodes `submit`, would do", usage=_usage("plan")
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    local.add_options(plan.add_argument_group("ranks on this machine"))
    slurm.add_options(plan, nodes=None)
    run = commands.add_parser("run", help="run a command on N local ranks", usage=_usage("run"))
    run.add_argument("--grace-s", type=float, default=15.0, help="seconds from TERM to KILL once a rank has failed")
    run.add_argument("--run-folder", type=Path, default=None, help="logs go to its logs/; default: runs/launch")
    local.add_options(run)
    submit = commands.add_parser("submit", help="submit a job to Slurm", usage=_usage("submit [RECIPE]", "overrides"))
    slurm.add_submit_options(submit)
    build = commands.add_parser("shards", help="build shard sets as jobs", usage=_usage("shards RECIPE", "overrides"))
    shards.add_options(build)
    commands.add_parser("doctor", help="say what is installed, and what looks wrong").add_argument(
        "--folder", type=Path, default=Path(), help="where data and runs will go"
    )
    return parser


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = make_parser().parse_args(arguments[:split])
    command = tuple(arguments[split + 1 :])
    if options.action == "doctor":
        from launch.doctor import report

        text, healthy = report(options.folder)
        sys.stdout.write(text + "\n")
        return 0 if healthy else 1
    try:
        if options.action == "submit" or (options.action == "plan" and options.nodes is not None):
            return slurm.carry_out(options, command)
        if options.action == "shards":
            return shards.carry_out(options, command)
        return local.carry_out(options, command)
    except CclmError as error:
        sys.stderr.write(f"launch: {error}\n")
        return USAGE_CODE


def _usage(action: str, rest: str = "command") -> str:
    return f"python -m launch {action} [options] -- {rest} …"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
