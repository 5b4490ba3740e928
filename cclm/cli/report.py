"""`cclm report`: one page about a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cclm.cli.say import say

DESCRIPTION = "Write one self-contained page about a run: curves, recall, gallery, data."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cclm report`."""
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--out", help="where to write; without it: report.html in the run folder")


def run(run: str, out: str | None = None) -> None:
    """Write the page about the newest checkpoint."""
    from cclm.files.atomic import replace_text
    from cclm.report.page import render
    from cclm.report.page_data import report_data
    from cclm.run.identity import identify_newest

    path = Path(out) if out else Path(run) / "report.html"
    replace_text(path, render(report_data(Path(run), identify_newest(Path(run)))))
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
