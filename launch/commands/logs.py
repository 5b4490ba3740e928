"""`logs`: what a run writes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cclm.errors import ConfigError
from launch.commands.parsers import Commands
from launch.commands.run import say
from launch.watch.find_runs import find_run

INTERRUPTED_CODE = 130


def add_to(commands: Commands) -> None:
    """Add `logs`."""
    parser = commands.add_parser("logs", help="show what a run writes, and follow it")
    parser.add_argument("run", metavar="RUN", help="name in runs/ or path")
    parser.add_argument("--rank", type=int, default=None, help="a rank's own log; default: the batch script's")
    parser.add_argument("--task", type=int, default=None, metavar="N", help="an element of an array")
    parser.add_argument("--lines", type=int, default=40, help="lines from the end")
    parser.add_argument("--follow", action="store_true", help="go on, over the run's lives, until it is over")
    parser.set_defaults(carry_out=carry_out)


def carry_out(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print the last lines; 130 if the user has had enough of following."""
    try:
        return _show(find_run(options.run), options)
    except KeyboardInterrupt:
        return INTERRUPTED_CODE


def _show(run_folder: Path, options: argparse.Namespace) -> int:
    if options.lines < 0:
        raise ConfigError(where="--lines", expected="0 or more", got=str(options.lines), do="Leave it out for 40.")
    from launch.watch.logs import EndOfRun, Tail, follow, log_of
    from launch.watch.status import look_at_one

    path = log_of(look_at_one(run_folder), rank=options.rank, task=options.task)
    tail = Tail(path, options.lines)
    if options.follow:
        for news in follow(tail, is_over=EndOfRun(run_folder, options.task), say=say):
            _write(news)
        return 0
    news_or_none = tail.news()
    if news_or_none is None:
        say(f"{path} is not there yet")
        return 1
    _write(news_or_none)
    return 0


def _write(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()
