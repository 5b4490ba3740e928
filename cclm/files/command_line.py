"""The command line of every program, in one style: defaults in the help, no abbreviations, the nearest option named."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from cclm.files.text import did_you_mean

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
OPTION = re.compile(r"--[a-z][a-z_-]*")


class Parser(argparse.ArgumentParser):
    """A parser of this style; so are those of its commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, "allow_abbrev": False, **options})

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Read a command line, or end the process with a sentence."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            own = self._command_of(options)
            meant = did_you_mean(unknown[0].partition("=")[0], OPTION.findall(own.format_help()))
            own.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return options

    def _command_of(self, options: argparse.Namespace) -> argparse.ArgumentParser:
        """Return the parser of the command that was given; without commands this one."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found: argparse.ArgumentParser = action.choices[getattr(options, action.dest)]
                return found
        return self


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults stand behind options that have one, unless their help says it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_it = "default" in (action.help or "") or action.default in (None, False, "", ()) or action.default == []
        return action.help if says_it else super()._get_help_string(action)


def add_command(commands: Commands, name: str, run: Callable[[argparse.Namespace], None]) -> Callable[..., Any]:
    """Add a command, whose help is the docstring of what runs it; return what adds its options."""
    text = inspect.getdoc(run) or ""
    parser = commands.add_parser(name, help=text[0].lower() + text[1:].rstrip("."), description=text)
    parser.set_defaults(run=run)
    return parser.add_argument


def say(line: str) -> None:
    """Write a line for the user."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
