"""The commands of `python -m launch`, how their words are read, and how a command ends."""

from __future__ import annotations

import argparse
import sys

from cclm.errors import CclmError
from cclm.files.command_line import Parser
from cclm.run.causes import EXIT_CODES, Cause, cause_of
from launch.commands import control, run, submit, sweep, watch
from launch.commands.watch import INTERRUPTED_CODE

COMMANDS = (run, submit, sweep, watch, control)
"""In the order of --help. Each has `add_to(commands)`."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line, without the part after `--`."""
    parser = Parser(prog="python -m launch", description="Plan a job, run it, look after it.")
    commands = parser.add_subparsers(dest="action", required=True)
    for module in COMMANDS:
        module.add_to(commands)
    return parser.parse(arguments)


def run_command(arguments: list[str]) -> int:
    """Run one command; return the exit code, which for an error is that of its cause."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = parse(arguments[:split])
    try:
        return int(options.execute(options, tuple(arguments[split + 1 :])))
    except CclmError as error:
        message, code = str(error), EXIT_CODES[cause_of(error)]
    except OSError as error:
        if error.filename is None:
            raise
        cause = cause_of(error)  # the user's disk, not our mistake
        message = f"{error.filename}: {error.strerror}"
        code = EXIT_CODES[Cause.USER_ERROR if cause is Cause.EXIT else cause]
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED_CODE
    sys.stderr.write(f"launch: {message}\n")
    return code
