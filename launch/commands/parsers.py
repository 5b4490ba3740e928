"""What every command of `python -m launch` needs: its place among the parsers, and the launcher's voice."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from cclm.files.command_line import Commands

RUN = "name in runs/ or path"


def add_command(
    commands: Commands, usage: str, execute: Callable[[argparse.Namespace, tuple[str, ...]], int], *, help: str
) -> argparse.ArgumentParser:
    """Add a command, whose name is the first word of its usage (which also shows the words after `--` that argparse
    does not know); return its parser. `execute` gets the options and those words, and returns the exit code."""
    name, _, words = usage.partition(" ")
    parser = commands.add_parser(name, help=help, usage=f"python -m launch {name} [options] {words}" if words else None)
    parser.set_defaults(execute=execute)
    return parser


def say(line: str) -> None:
    """Write one line of the launcher's own."""
    sys.stderr.write(f"launch: {line}\n")
    sys.stderr.flush()
