"""The commands of `cclm`: measure, export and use trained models."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cclm.cli import retrieval, runs, weights
from cclm.files.command_line import Parser, open_output
from cclm.run.ending import end_with


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit code: `cclm.run.causes` says which stands for what."""
    open_output()
    options = make_parser().parse(arguments)
    try:
        options.run(options)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - every end has a sentence and a code
        return end_with(error)
    return 0


def make_parser() -> Parser:
    """Build the command line."""
    parser = Parser(prog="cclm", description="Measure, export and report pre-trained cross-view models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (runs, weights, retrieval):
        module.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
