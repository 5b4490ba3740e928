"""`python -m launch plan|run|doctor`: see docs/launch.md. Starts at once: no torch here."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cclm.errors import CclmError
from launch.machine import this_machine
from launch.plan import JobRequest, make_plan

USAGE_CODE = 2


def number_or_auto(text: str) -> int | None:
    """Parse a count; "auto" is None."""
    return None if text == "auto" else int(text)


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line, without the part after `--`."""
    parser = argparse.ArgumentParser(prog="python -m launch", description=__doc__)
    commands = parser.add_subparsers(dest="action", required=True)
    plan = commands.add_parser("plan", help="print what `run` would do", usage=_usage("plan"))
    plan.add_argument("--json", action="store_true", help="print JSON")
    run = commands.add_parser("run", help="run a command on N local ranks", usage=_usage("run"))
    run.add_argument("--grace-s", type=float, default=15.0, help="seconds from TERM to KILL once a rank has failed")
    for job in (plan, run):
        job.add_argument("--ranks", type=number_or_auto, default=None, help="processes; auto: one per GPU, or one")
        job.add_argument("--threads-per-rank", type=number_or_auto, default=None, help="auto: usable cores / ranks")
        job.add_argument("--port", type=number_or_auto, default=None, help="where the ranks meet; auto: a free one")
        job.add_argument("--run-folder", type=Path, default=Path("runs/launch"), help="logs go to its logs/")
        job.add_argument("--bind", choices=("auto", "none"), default="auto", help="auto: own cores for each rank")
    commands.add_parser("doctor", help="say what is installed, and what looks wrong").add_argument(
        "--folder", type=Path, default=Path(), help="where data and runs will go"
    )
    return parser


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = make_parser().parse_args(arguments[:split])
    if options.action == "doctor":
        from launch.doctor import report

        text, healthy = report(options.folder)
        sys.stdout.write(text + "\n")
        return 0 if healthy else 1
    try:
        return _plan_or_run(options, tuple(arguments[split + 1 :]))
    except CclmError as error:
        sys.stderr.write(f"launch: {error}\n")
        return USAGE_CODE


def _plan_or_run(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    request = JobRequest(
        command=command,
        folder=Path.cwd(),
        run_folder=options.run_folder.absolute(),
        num_ranks=options.ranks,
        threads_per_rank=options.threads_per_rank,
        port=options.port,
        bind=options.bind == "auto",
    )
    plan = make_plan(request, this_machine(), os.environ)
    if options.action == "plan":
        sys.stdout.write((plan.to_json() if options.json else plan.to_text()) + "\n")
        return 0
    from launch.local import run_plan

    return run_plan(plan, say=_say, grace_s=options.grace_s).code


def _say(line: str) -> None:
    sys.stderr.write(f"launch: {line}\n")
    sys.stderr.flush()


def _usage(action: str) -> str:
    return f"python -m launch {action} [options] -- command …"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
