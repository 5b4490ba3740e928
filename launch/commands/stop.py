"""`stop` and `cancel`: end runs, after they have saved or at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from launch.commands.parsers import Commands, say
from launch.watch.runs import find_runs_of


def add_to(commands: Commands) -> None:
    """Add `stop` and `cancel`."""
    stop = commands.add_parser("stop", help="let a run save, end, and stay stopped")
    stop.add_argument("run", metavar="RUN", help="name in runs/ or path, also of a sweep")
    stop.add_argument("--wait", type=float, default=0.0, metavar="S", help="wait so many seconds until it has stopped")
    stop.set_defaults(execute=execute_stop)
    cancel = commands.add_parser("cancel", help="end all jobs of a run at once")
    cancel.add_argument("run", metavar="RUN", help="name in runs/ or path, also of a sweep")
    cancel.set_defaults(execute=execute_cancel)


def execute_stop(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Ask the runs to stop; 1 if they have not within the time given."""
    from launch.control.stop import stop, wait_until_stopped

    runs = find_runs_of(options.run)
    asked = stop(runs, say=_say_of(runs))
    if len(runs) > 1 and not asked:
        say(f"none of {len(runs)} runs is asked to save")
    return 0 if not options.wait or wait_until_stopped(asked, options.wait, say=_say_of(runs)) else 1


def execute_cancel(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Cancel the runs' jobs; 1 if one has not ended after all."""
    from launch.control.stop import cancel

    runs = find_runs_of(options.run)
    return 0 if cancel(runs, say=_say_of(runs)) else 1


def _say_of(runs: list[Path]) -> Callable[[Path, str], None]:
    """Return how to speak of a run: by its name, if there are several."""

    def say_of(run: Path, line: str) -> None:
        say(f"{run.name}: {line}" if len(runs) > 1 else line)

    return say_of
