"""`status`: how runs are doing, from Slurm and from their folders."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch.commands.parsers import Commands
from launch.watch.runs import RUNS, find_runs, find_runs_of


def add_to(commands: Commands) -> None:
    """Add `status`."""
    parser = commands.add_parser("status", help="how runs are doing: job, step, loss, speed, checkpoint, last word")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="name in runs/ or path; default: all of them")
    parser.add_argument("--root", type=Path, default=RUNS, help="where runs are looked for")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print a table, the block of the only run that was named, or JSON."""
    from launch.slurm.jobs import details_of
    from launch.watch.status import look_at
    from launch.watch.status_text import as_block, as_json, as_table

    named = [path for name in options.runs for path in find_runs_of(name)]
    paths = named or [path.absolute() for path in find_runs(options.root)]
    runs, unreadable, jobs = look_at(paths)
    if options.json:
        text = as_json(runs, unreadable, jobs)
    elif len(named) == 1 and runs:
        is_known = bool(jobs.of(runs[0].job)) and runs[0].array_tasks is None
        text = as_block(runs[0], details_of(runs[0].job) if is_known else {})
    elif paths:
        text = as_table(runs, unreadable, options.root)
    else:
        text = f"no runs in {options.root.absolute()}"
    sys.stdout.write(text + "\n")
    if jobs.silence and not options.json:
        sys.stderr.write(f"launch: {jobs.silence}\n")
    return 0
