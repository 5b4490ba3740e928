"""`stop` and `cancel`: end a run, after it has saved or at once."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from launch.commands.parsers import Commands
from launch.commands.run import say
from launch.watch.find_runs import find_runs_of


def add_to(commands: Commands) -> None:
    """Add `stop` and `cancel`."""
    stop = commands.add_parser("stop", help="let a run save, end and rest")
    stop.add_argument("run", metavar="RUN", help="name in runs/ or path, also of a sweep")
    stop.add_argument("--wait", type=float, default=0.0, metavar="S", help="wait so many seconds until it rests")
    stop.set_defaults(carry_out=carry_out_stop)
    cancel = commands.add_parser("cancel", help="end all jobs of a run at once")
    cancel.add_argument("run", metavar="RUN", help="name in runs/ or path, also of a sweep")
    cancel.set_defaults(carry_out=carry_out_cancel)


def carry_out_stop(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Ask the run to rest; 1 if it does not within the time given."""
    from launch.control.stop import stop, wait_for_rest

    asked = [(run, told) for run, told in _runs(options.run) if stop(run, say=told)]
    began = time.monotonic()
    rest = [
        wait_for_rest(run, max(options.wait - (time.monotonic() - began), 0.0), say=told)
        for run, told in asked
        if options.wait
    ]
    return 0 if all(rest) else 1


def carry_out_cancel(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Cancel the run's jobs; 1 if one has not ended after all."""
    from launch.control.stop import cancel

    return 0 if all([cancel(run, say=told) for run, told in _runs(options.run)]) else 1


def _runs(name: str) -> list[tuple[Path, Callable[[str], None]]]:
    """The runs that are meant, each with its way to say something. The last first: of a sweep, that is who waits."""
    found = find_runs_of(name)
    if len(found) > 1:
        from launch.control.stop import those_with_jobs

        found, many = those_with_jobs(found), len(found)
        if len(found) < many:
            say(f"{many - len(found)} of {many} runs neither wait nor run")
        return [(run, partial(_say_of, run)) for run in reversed(found)]
    return [(run, say) for run in found]


def _say_of(run: Path, line: str) -> None:
    say(f"{run.name}: {line}")
