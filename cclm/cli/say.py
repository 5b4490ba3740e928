"""What all commands share: adding themselves to the command line, and telling the user something."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults stand behind options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, False, ()) and action.default != []
        return super()._get_help_string(action) if has_default else action.help


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], help: str
) -> Callable[..., Any]:
    """Add a command; return what adds its options."""
    parser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False, formatter_class=_Help
    )
    parser.set_defaults(run=run)
    return parser.add_argument


def say(line: str) -> None:
    """Write a line for the user."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
