"""`python -m launch COMMAND`: see docs/launch.md and docs/slurm.md. Starts at once: no torch here."""

from __future__ import annotations

import sys

from cclm.files.command_line import open_output
from cclm.run.signals import expect_children, quiet_interrupt


def main(arguments: list[str]) -> int:
    """Run one command; return the exit code, which for an error is that of its cause."""
    open_output()
    expect_children()
    with quiet_interrupt():
        from cclm.errors import CclmError
        from cclm.files.command_line import Parser
        from cclm.run.causes import EXIT_CODES, Cause, cause_of
        from launch.commands import run, runs, submit, sweep
    parser = Parser(prog="python -m launch", description="Plan a job, run it, look after it.")
    commands = parser.add_subparsers(dest="action", required=True)
    for module in (run, submit, sweep, runs):  # in the order of --help
        module.add_to(commands)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse(arguments[:split])
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
        message, code = "interrupted", runs.INTERRUPTED_CODE
    sys.stderr.write(f"launch: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
