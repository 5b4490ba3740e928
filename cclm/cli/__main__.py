"""The commands of `cclm`: measure, export and use trained models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cclm.cli import embed, evaluate, export, import_file, prune_vocabulary, report, search, verify_ledger
from cclm.errors import CclmError

COMMANDS = (embed, evaluate, export, import_file, prune_vocabulary, report, search, verify_ledger)
"""In the order of --help. Each has `add_to(commands)`, which adds a parser whose default `run` takes the options."""
USAGE_CODE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; what the user must mend (a file that cannot be written, too) is one sentence and code 2."""
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
    except CclmError as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE_CODE
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"error: {error.filename}: {error.strerror}\n")
        return USAGE_CODE
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(prog="cclm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for module in COMMANDS:
        module.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
