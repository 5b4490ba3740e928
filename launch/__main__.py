"""`python -m launch COMMAND`: see docs/launch.md and docs/slurm.md. Starts at once: no torch here."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import signal
import sys

from cclm.errors import CclmError
from launch.commands import doctor, drill, logs, plan, resume, run, shards, status, stop, submit, sweep

COMMANDS = (plan, run, submit, sweep, shards, status, logs, stop, resume, drill, doctor)
"""In the order of --help. Each has `add_to(commands)`, which adds parsers whose default `carry_out` takes the options
and the words after `--`, and returns the exit code."""
USAGE_CODE = 2
OPTION = re.compile(r"--[a-z][a-z-]*")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line, without the part after `--`."""
    parser = argparse.ArgumentParser(prog="python -m launch", description=__doc__)
    commands = parser.add_subparsers(dest="action", required=True)
    for module in COMMANDS:
        module.add_to(commands)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        own = commands.choices[options.action]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], OPTION.findall(own.format_help()), n=1)
        own.error(f"unrecognized arguments: {' '.join(unknown)}" + (f" (did you mean {near[0]}?)" if near else ""))
    return options


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = parse(arguments[:split])
    command = tuple(arguments[split + 1 :])
    try:
        code = int(options.carry_out(options, command))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # `| head` has seen enough; Python would complain once more when it closes the pipe at its own end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except CclmError as error:
        sys.stderr.write(f"launch: {error}\n")
        return USAGE_CODE
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"launch: {error.filename}: {error.strerror}\n")  # the user's disk, not our mistake
        return USAGE_CODE
    except KeyboardInterrupt:
        sys.stderr.write("launch: interrupted\n")
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
