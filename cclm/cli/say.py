"""What all commands share: adding themselves to the command line, and telling the user something."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable
from typing import Any

from cclm.files.command_line import Commands


def add_command(commands: Commands, name: str, run: Callable[[argparse.Namespace], None]) -> Callable[..., Any]:
    """Add a command, whose help is the docstring of what runs it; return what adds its options."""
    text = inspect.getdoc(run) or ""
    parser = commands.add_parser(name, help=text[0].lower() + text[1:].rstrip("."), description=text)
    parser.set_defaults(run=run)
    return parser.add_argument


def say(line: str) -> None:
    """Write a line for the user."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
