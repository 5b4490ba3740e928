"""The table of the commands, and what happens when one is called."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cclm.cli import embed, evaluate, export, import_file, prune_vocabulary, report, search, verify_ledger
from cclm.files.output import open_output
from cclm.run.ending import end_with

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: its line in the help, its options, and what it does with them."""

    help: str
    make_parser: Callable[[], ArgumentParser]
    run: Callable[..., None]
    """Takes the parsed options by name."""


COMMANDS = {
    "embed": Command(
        help="features of pictures and texts as Parquet files", make_parser=embed.make_parser, run=embed.run
    ),
    "evaluate": Command(
        help="measure zero-shot retrieval in many languages", make_parser=evaluate.make_parser, run=evaluate.run
    ),
    "export": Command(
        help="write a Hugging Face folder with its own code", make_parser=export.make_parser, run=export.run
    ),
    "import": Command(
        help="convert a published file to a Hugging Face folder",
        make_parser=import_file.make_parser,
        run=import_file.run,
    ),
    "prune-vocabulary": Command(
        help="keep the pieces that a corpus uses",
        make_parser=prune_vocabulary.make_parser,
        run=prune_vocabulary.run,
    ),
    "report": Command(help="write one self-contained report.html", make_parser=report.make_parser, run=report.run),
    "search": Command(
        help="find pictures of an embedded set by texts in any language", make_parser=search.make_parser, run=search.run
    ),
    "verify-ledger": Command(
        help="recompute the hash chain of what was trained on",
        make_parser=verify_ledger.make_parser,
        run=verify_ledger.run,
    ),
}
"""Every command by its name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit code: `cclm.run.causes` says which stands for what."""
    open_output()
    chosen = make_parser().parse_args(None if arguments is None else list(arguments))
    try:
        COMMANDS[chosen.command].run(**dict(vars(chosen[chosen.command])))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 128 + signal.SIGINT
    except Exception as error:  # noqa: BLE001 - every end has a sentence and a code
        return end_with(error)
    return 0


def make_parser() -> ArgumentParser:
    """Build the command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="cclm", description="Measure, export and report pre-trained cross-view models.")
    subcommands = parser.add_subcommands(dest="command")
    for name, command in COMMANDS.items():
        subcommands.add_subcommand(name, command.make_parser(), help=command.help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
