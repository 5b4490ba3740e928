"""`--json PATH`, which every benchmark takes: the figures of its table for programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Let the command line name a file for the figures."""
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")


def write_figures(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write the figures as JSON; nothing without a path."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
