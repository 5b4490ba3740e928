"""`--json [PATH]`, which every benchmark takes: the figures of its table for programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

STDOUT: Final = Path("-")
"""In place of a path."""


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Let the command line name a file for the figures."""
    told = "also write the figures here; without PATH as the last line of the output"
    parser.add_argument("--json", type=Path, metavar="PATH", nargs="?", const=STDOUT, help=told)


def write_figures(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write the figures as JSON; nothing without a path."""
    if path == STDOUT:
        print(json.dumps(figures, sort_keys=True, ensure_ascii=False))
    elif path is not None:
        path.write_text(json.dumps(figures, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
