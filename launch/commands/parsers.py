"""What every command needs: its place among the parsers of `python -m launch`, and the launcher's voice."""

from __future__ import annotations

import argparse
import sys
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `ArgumentParser.add_subparsers` returns."""
RUN = "name in runs/ or path"


def usage(action: str, rest: str = "command") -> str:
    """Return the usage line of a command that takes words after `--`, which argparse does not know."""
    return f"python -m launch {action} [options] -- {rest} …"


def say(line: str) -> None:
    """Write one line of the launcher's own."""
    sys.stderr.write(f"launch: {line}\n")
    sys.stderr.flush()
