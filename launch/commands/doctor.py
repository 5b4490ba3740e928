"""`doctor`: what is installed here, and what looks wrong."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch.commands.parsers import Commands


def add_to(commands: Commands) -> None:
    """Add `doctor`."""
    parser = commands.add_parser("doctor", help="say what is installed, and what looks wrong")
    parser.add_argument("--folder", type=Path, default=Path(), help="where data and runs will go")
    parser.set_defaults(carry_out=carry_out)


def carry_out(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print the report; 1 if something fails."""
    from launch.doctor import report

    text, healthy = report(options.folder)
    sys.stdout.write(text + "\n")
    return 0 if healthy else 1
