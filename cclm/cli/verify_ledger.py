"""`cclm verify-ledger`: recompute the hash chain of what was trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

from cclm.cli.say import say
from cclm.errors import ConfigError

DESCRIPTION = "Recompute the hash chain of a run's ledger. Two runs with the same last hash saw the same samples."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cclm verify-ledger`."""
    parser.add_argument("run", help="a run folder")


def run(run: str) -> None:
    """Check the chain, print its end."""
    from cclm.data.ledger import verify_ledger
    from cclm.files.step_lines import StepLines

    path = Path(run) / "ledger.jsonl"
    if not path.is_file():
        raise ConfigError(
            where=run,
            expected="a run folder with ledger.jsonl",
            got="none",
            do="Give the folder that `python -m pretrain` wrote.",
        )
    value, last = verify_ledger(path), StepLines(path).last()
    say(f"{path}: sound, {0 if last is None else last['step'] + 1:,} steps, last hash {value}")
