"""`cclm verify-ledger`: recompute the hash chain of what was trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

from cclm.cli.say import add_command, say
from cclm.errors import ConfigError
from cclm.files.command_line import Commands


def add_to(commands: Commands) -> None:
    """Add `verify-ledger`."""
    add = add_command(
        commands,
        "verify-ledger",
        run,
        "recompute the hash chain of a run's ledger: two runs with the same last hash saw the same samples",
    )
    add("run_folder", metavar="run", type=Path, help="a run folder")


def run(options: argparse.Namespace) -> None:
    """Check the chain, print its end."""
    from cclm.data.ledger import verify_ledger
    from cclm.files.step_lines import StepLines

    path = options.run_folder / "ledger.jsonl"
    if not path.is_file():
        raise ConfigError(
            where=str(options.run_folder),
            expected="a run folder with ledger.jsonl",
            got="none",
            do="Give the folder that `python -m pretrain` wrote.",
        )
    value, last = verify_ledger(path), StepLines(path).last()
    say(f"{path}: sound, {0 if last is None else last['step'] + 1:,} steps, last hash {value}")
