"""`stop` and `cancel`: end a run, after it has saved or at once."""

from __future__ import annotations

import argparse

from launch.commands.local import say
from launch.commands.parsers import Commands
from launch.runs import find_run


def add_to(commands: Commands) -> None:
    """Add `stop` and `cancel`."""
    stop = commands.add_parser("stop", help="let a run save, end and rest")
    stop.add_argument("run", metavar="RUN", help="name in runs/ or path")
    stop.add_argument("--wait", type=float, default=0.0, metavar="S", help="wait so many seconds until it rests")
    stop.set_defaults(carry_out=carry_out_stop)
    cancel = commands.add_parser("cancel", help="end all jobs of a run at once")
    cancel.add_argument("run", metavar="RUN", help="name in runs/ or path")
    cancel.set_defaults(carry_out=carry_out_cancel)


def carry_out_stop(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Ask the run to rest; 1 if it does not within the time given."""
    from launch.stopping import stop, wait_for_rest

    run_folder = find_run(options.run)
    is_asked = stop(run_folder, say=say)
    return 1 if is_asked and options.wait and not wait_for_rest(run_folder, options.wait, say=say) else 0


def carry_out_cancel(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Cancel the run's jobs; 1 if one has not ended after all."""
    from launch.stopping import cancel

    return 0 if cancel(find_run(options.run), say=say) else 1
