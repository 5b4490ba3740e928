"""`cclm verify-ledger`: recompute the hash chain of what was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cclm.cli.say import say
from cclm.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def make_parser() -> ArgumentParser:
    """Options of `cclm verify-ledger`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        description="Recompute the hash chain of a run's ledger. Two runs with the same last hash saw the same samples."
    )
    parser.add_argument("run", type=str, help="a run folder")
    return parser


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
