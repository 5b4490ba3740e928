"""`doctor`: what is installed here, and what looks wrong."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch.commands.parsers import Commands
from launch.plan.request import SlurmRequest


def add_to(commands: Commands) -> None:
    """Add `doctor`."""
    parser = commands.add_parser("doctor", help="say what is installed, and what looks wrong")
    parser.add_argument("--folder", type=Path, default=Path(), help="where data and runs will go")
    parser.add_argument("--profile", default=None, help="name in launch/profiles/ or path; default: $CCLM_PROFILE")
    parser.add_argument("--save-s", type=int, default=SlurmRequest.save_s, help="seconds for saving, as for submit")
    parser.set_defaults(carry_out=carry_out)


def carry_out(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print the report; 1 if something fails."""
    from launch.local.diagnose import report
    from launch.plan.profile import read_profile

    text, healthy = report(options.folder, read_profile(options.profile), options.save_s)
    sys.stdout.write(text + "\n")
    return 0 if healthy else 1
