"""A program's standard streams, made so that nothing about them can end it. Standard library only.

What a program says is never worth more than what it does: a terminal that speaks ASCII, a stream that the parent
closed (`>&-`), a reader that has gone (`| head`), a terminal that was closed, a full disk behind `> file`, a pipe that
does not block: none of them changes how a job ends.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any, TextIO


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
