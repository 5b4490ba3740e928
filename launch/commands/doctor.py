"""`doctor`: what is installed here, and what looks wrong."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch.commands.fields import add_fields
from launch.commands.parsers import Commands
from launch.plan.request import SlurmRequest


def add_to(commands: Commands) -> None:
    """Add `doctor`."""
    parser = commands.add_parser("doctor", help="say what is installed, and what looks wrong")
    parser.add_argument("--folder", type=Path, default=Path(), help="where data and runs will go")
    parser.add_argument("--profile", default=None, help="name in launch/profiles/ or path; default: $CCLM_PROFILE")
    add_fields(parser, SlurmRequest, ["save_s"])
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace, command: tuple[str, ...]) -> int:
    """Print the report; 1 if something fails."""
    from launch.local.diagnose import diagnose_machine
    from launch.plan.profile import read_profile
    from launch.slurm.diagnose import diagnose_slurm

    profile = read_profile(options.profile)
    found = [*diagnose_machine(options.folder), *diagnose_slurm(options.folder, profile, options.save_s)]
    for item in found:
        sys.stdout.write(f"{item.level:5} {item.subject:22} {item.text}\n")
    return 1 if any(item.level == "fail" for item in found) else 0
