"""`python -m launch COMMAND`: see docs/launch.md and docs/slurm.md. Starts at once: no torch here."""

from __future__ import annotations

import sys

from cclm.files.command_line import open_output
from cclm.run.signals import expect_children, quiet_interrupt


def main(arguments: list[str]) -> int:
    """Run one command; return the exit code."""
    open_output()
    expect_children()
    with quiet_interrupt():
        from launch.command_line import run_command
    return run_command(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
