"""What all commands share: adding themselves to the command line, and telling the user something."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from cclm.files.command_line import Commands


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], help: str
) -> Callable[..., Any]:
    """Add a command; return what adds its options."""
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    parser.set_defaults(run=run)
    return parser.add_argument


def say(line: str) -> None:
    """Write a line for the user."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
