"""`logs`: what a run writes."""

from __future__ import annotations

import argparse
import signal
import sys

from cclm.errors import ConfigError
from cclm.files.output import is_lost
from cclm.files.tail import Tail
from launch.commands.parsers import Commands, say
from launch.watch.runs import find_run

INTERRUPTED_CODE = 128 + signal.SIGINT


def add_to(commands: Commands) -> None:
    """Add `logs`."""
    parser = commands.add_parser("logs", help="show what a run writes, and follow it")
    parser.add_argument("run", metavar="RUN", help="name in runs/ or path")
    parser.add_argument("--rank", type=int, default=None, help="a rank's own log; default: the batch script's")
    parser.add_argument("--task", type=int, default=None, metavar="N", help="a task of an array")
    parser.add_argument("--lines", type=int, default=40, help="lines from the end")
    parser.add_argument("--follow", action="store_true", help="go on, over the run's attempts, until it is over")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print the last lines; 1 if there is no file yet."""
    if options.lines < 0:
        raise ConfigError(where="--lines", expected="0 or more", got=str(options.lines), do="Leave it out for 40.")
    from launch.watch.logs import EndOfRun, follow, log_of
    from launch.watch.status import look_at_one

    run_folder = find_run(options.run)
    path = log_of(look_at_one(run_folder), rank=options.rank, task=options.task, say=say)
    tail = Tail(path, options.lines)
    if not options.follow:
        news = tail.news()
        if news is None:
            say(f"{path} is not there yet")
            return 1
        _write(news)
        return 0
    try:
        for news in follow(tail, is_over=EndOfRun(run_folder, options.task), say=say):
            _write(news)
            if is_lost():
                break  # `| head` has seen enough
    except KeyboardInterrupt:  # the user has seen enough
        return INTERRUPTED_CODE
    return 0


def _write(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()
