"""`cclm report`: one page about a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cclm.cli.say import add_command, say
from cclm.files.command_line import Commands


def add_to(commands: Commands) -> None:
    """Add `report`."""
    add = add_command(commands, "report", run, "write one self-contained page about a run")
    add("run_folder", metavar="run", type=Path, help="a run folder")
    add("--out", type=Path, help="where to write; without it: report.html in the run folder")


def run(options: argparse.Namespace) -> None:
    """Write the page about the newest checkpoint."""
    from cclm.files.atomic import replace_text
    from cclm.report.page import report_page
    from cclm.run.identity import identify_newest

    folder = options.run_folder
    path = options.out or folder / "report.html"
    replace_text(path, report_page(folder, identify_newest(folder)))
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
