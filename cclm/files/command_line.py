"""The command line of every program, in one style, and its standard streams: nothing about them can end it.

Defaults stand in the help, nothing is abbreviated, the nearest option is named. What a program says is never worth
more than what it does: a terminal that speaks ASCII, a stream that the parent closed (`>&-`), a reader that has gone
(`| head`), a terminal that was closed, a full disk behind `> file`, a pipe that does not block: none of them changes
how a job ends.
"""

from __future__ import annotations

import argparse
import inspect
import io
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO, TypeAlias

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
    parser = commands.add_parser(name, help=text[:1].lower() + text[1:].rstrip("."), description=text)
    parser.set_defaults(run=run)
    return parser.add_argument


def positive(text: str) -> int:
    """Read a number of at least 1: the `type` of an option."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def not_negative(text: str) -> int:
    """Read a number of at least 0: the `type` of an option."""
    return positive(text) if int(text) else 0


# argparse's words: "invalid number of at least 1 value: '0'"
positive.__name__, not_negative.__name__ = "number of at least 1", "number of at least 0"


def say(line: str) -> None:
    """Write a line for the user."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class _Survivor(io.FileIO):
    """A file descriptor whose failures end the output, not the program."""

    is_lost = False

    def write(self, data: Any, /) -> int:
        """Write some of `data`; once the stream is lost, swallow it."""
        while True:
            try:
                written = super().write(data)
            except OSError:  # no reader (EPIPE), no terminal (EIO), no room (ENOSPC): nobody is left to be told
                self.is_lost = True
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self.fileno())
                os.close(nothing)
                continue
            if written is not None:
                return written
            select.select([], [self], [])  # somebody who shares the pipe or terminal made it non-blocking


def open_output() -> None:
    """Prepare stdout and stderr; the first thing that a program does.

    Descriptors 0, 1 and 2 are opened if the parent closed them: the next file that the program opens would get the
    number, and what C libraries say would go into it. Streams that somebody else has put in place (a test) stay.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is getattr(sys, f"__{name}__"):
            stream = _open(descriptor, getattr(sys, name))
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def is_lost() -> bool:
    """Return whether nobody reads stdout any more; for a command that does nothing but write, and without end."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Survivor) and raw.is_lost


def _open(descriptor: int, before: TextIO | None) -> TextIO:
    if before is not None:
        before.flush()
    buffer = io.BufferedWriter(_Survivor(descriptor, "wb", closefd=False))
    encoding = before.encoding if before is not None else "utf-8"
    is_immediate = descriptor == 2 or buffer.isatty()
    # A character that the encoding lacks is spelled, so that a path can still be told.
    return io.TextIOWrapper(buffer, encoding=encoding, errors="backslashreplace", line_buffering=is_immediate)
