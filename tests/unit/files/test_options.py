from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from cclm.files.describe import add_fields, read_fields


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What somebody wants."""

    nodes: int = 1
    """Nodes of the job."""
    hang_s: float = 1800.0
    after: Path | None = None
    """Begin when the run in
    this folder is done: 100%."""
    is_sure: bool = False
    """Do not ask."""
    mood: str = "good"
    """How one feels."""


NAMES = ("nodes", "hang_s", "after", "is_sure", "mood")


def parser(**options: object) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser()
    add_fields(found, Wanted, NAMES, **options)  # type: ignore[arg-type]
    return found


def test_options_are_made_from_fields() -> None:
    options = parser().parse_args(["--hang-s", "2.5", "--after", "a", "--is-sure"])
    given = {"nodes": 1, "hang_s": 2.5, "after": Path("a"), "is_sure": True, "mood": "good"}
    assert read_fields(options, NAMES) == given
    assert "Begin when the run in this folder is done: 100%." in " ".join(parser().format_help().split())


def test_what_was_not_given_is_left_out() -> None:
    options = parser(default=None).parse_args(["--nodes", "2"])
    assert read_fields(options, ("nodes", "hang_s", "after", "mood")) == {"nodes": 2}


def test_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser(choices={"mood": ("good", "bad")}).parse_args(["--mood", "odd"])
    assert "invalid choice: 'odd'" in capsys.readouterr().err
