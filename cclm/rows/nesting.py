"""How deep a JSON document may nest: ijson's path to a value costs the square of it, 25 GB for 100,000 brackets."""

from __future__ import annotations

import re
from typing import BinaryIO, Final

from cclm.rows.guard import bad

DEEPEST: Final = 512
"""Open lists and objects; annotation files have fewer than ten."""
_ESCAPE: Final = re.compile(rb"\\.", re.DOTALL)
_OTHERS: Final = bytes(set(range(256)) - set(b"[]{}"))


class ShallowJson:
    """A JSON file for `ijson`; `read` raises a DataError (file_broken) where more than DEEPEST values are open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._open = self._escape = b""
        self._in_string = False

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        data = self._file.read(size)
        text = _ESCAPE.sub(b"", self._escape + data)  # without escapes, each quote begins or ends a string
        self._escape = text[-1:] if text.endswith(b"\\") else b""
        parts = text.split(b'"')
        brackets = self._open + b"".join(parts[self._in_string :: 2]).translate(None, _OTHERS)
        self._in_string ^= len(parts) % 2 == 0
        for _ in range(DEEPEST):
            before, brackets = brackets, brackets.replace(b"[]", b"").replace(b"{}", b"")
            if len(brackets) == len(before) <= DEEPEST:
                self._open = brackets
                return data
        raise bad("file_broken", f"JSON with at most {DEEPEST} lists and objects in each other", "more")
