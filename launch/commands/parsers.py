"""What every command needs to add its parser to those of `python -m launch`."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `ArgumentParser.add_subparsers` returns."""


def usage(action: str, rest: str = "command") -> str:
    """The usage line of a command that takes words after `--`, which argparse does not know."""
    return f"python -m launch {action} [options] -- {rest} …"
