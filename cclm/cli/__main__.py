"""The table of the commands, and what happens when one is called."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from cclm.cli import embed, evaluate, export, import_file, prune_vocabulary, report, search, verify_ledger
from cclm.files.output import open_output
from cclm.run.ending import end_with

COMMANDS = {
    "embed": (embed, "features of pictures and texts as Parquet files"),
    "evaluate": (evaluate, "measure zero-shot retrieval in many languages"),
    "export": (export, "write a Hugging Face folder with its own code"),
    "import": (import_file, "convert a published file to a Hugging Face folder"),
    "prune-vocabulary": (prune_vocabulary, "keep the pieces that a corpus uses"),
    "report": (report, "write one self-contained report.html"),
    "search": (search, "find pictures of an embedded set by texts in any language"),
    "verify-ledger": (verify_ledger, "recompute the hash chain of what was trained on"),
}
"""Every command by its name: its module, and its line in the help."""


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults stand behind options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, False) and action.default != []
        return super()._get_help_string(action) if has_default else action.help


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit code: `cclm.run.causes` says which stands for what."""
    open_output()
    values = vars(make_parser().parse_args(arguments))
    module, _ = COMMANDS[values.pop("command")]
    try:
        module.run(**values)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 128 + signal.SIGINT
    except Exception as error:  # noqa: BLE001 - every end has a sentence and a code
        return end_with(error)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="cclm", description="Measure, export and report pre-trained cross-view models.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        own = commands.add_parser(
            name, help=text, description=module.DESCRIPTION, allow_abbrev=False, formatter_class=Help
        )
        module.add_options(own)
    return parser


if __name__ == "__main__":
    sys.exit(main())
