"""Entries of one JSON document (a list, or an object by key), each with the line that it begins in.

Such files hold hundreds of thousands of questions in one array: entries are decoded one after another, and an entry of
another form is told by its line, as in a file of JSON lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from cclm.errors import DataError
from cclm.rows.guard import bad, data_errors, described
from cclm.rows.lines import open_plain
from cclm.rows.tables import DECODER

_BEGINNING_BYTES: Final = 1 << 16
_SPACE: Final = re.compile(r"[ \t\n\r]*")
Entry = tuple[str, str, Any]
"""Place ("PATH:LINE"), key (in a list: the index), value."""


def json_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a JSON list or object (also compressed).

    Raises:
        DataError: it is not JSON, or neither list nor object (reason file_broken); with file and line.
    """
    text = _text_of(path)
    yield from _Walk(text, str(path)).entries()


def json_document(path: Path) -> Any:
    """Return the whole value of a JSON file (also compressed); DataError as for `json_entries`."""
    text = _text_of(path)
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        _broken(str(path), text, error)


def first_sign(path: Path) -> str:
    """Return the first sign of a JSON document, which says whether it is a list or an object; "" of an empty file."""
    with suppress(Exception), open_plain(path) as file:  # whoever reads it whole says what is wrong with it
        return file.read(_BEGINNING_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()[:1].decode("ascii", "replace")
    return ""


def _text_of(path: Path) -> str:
    with data_errors(str(path), "file_broken", "a readable file"), open_plain(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        got = f"the byte 0x{error.object[error.start]:02x}"
        raise bad("file_encoding", "a JSON document in UTF-8", got, f"{path}:{line}") from error


def _broken(name: str, text: str, error: Exception, position: int = 0) -> NoReturn:
    position = getattr(error, "pos", position)
    place = f"{name}:{text.count(chr(10), 0, position) + 1}"
    got = f"{error.msg}" if isinstance(error, json.JSONDecodeError) else described(error)
    raise bad("file_broken", "a JSON document", got, place, "Fetch the file again, or mend it.") from error


class _Walk:
    """A position in a JSON text that goes forward, and its line."""

    def __init__(self, text: str, name: str) -> None:
        self._text, self._name = text, name
        self._position, self._line, self._counted = 0, 1, 0

    def entries(self) -> Iterator[Entry]:
        opening = self._sign()
        if opening not in ("[", "{"):
            raise self._unexpected("a JSON list or object", opening)
        closing = {"[": "]", "{": "}"}[opening]
        index, keys = 0, set[str]()
        sign = self._sign() if self._peek() == closing else ","
        while sign != closing:
            if sign != ",":
                raise self._unexpected(f"a comma or {closing}", sign)
            place, key = self._place(), str(index)
            if opening == "{":
                key = self._value()
                if not isinstance(key, str) or self._sign() != ":":
                    raise self._unexpected("a key in quotes and a colon", str(key))
                if key in keys:
                    raise bad("file_broken", "each key once", f"{key!r} again", place)
                keys.add(key)
            yield place, key, self._value()
            index, sign = index + 1, self._sign()
        if rest := self._peek():
            raise self._unexpected("the end of the file", rest)

    def _peek(self) -> str:
        match = _SPACE.match(self._text, self._position)
        self._position = match.end() if match else self._position
        return self._text[self._position : self._position + 1]

    def _sign(self) -> str:
        sign = self._peek()
        self._position += 1
        return sign

    def _value(self) -> Any:
        self._peek()
        try:
            value, self._position = DECODER.raw_decode(self._text, self._position)
        except (ValueError, RecursionError) as error:
            _broken(self._name, self._text, error, self._position)
        return value

    def _place(self) -> str:
        self._peek()
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return f"{self._name}:{self._line}"

    def _unexpected(self, expected: str, got: str) -> DataError:
        return bad("file_broken", expected, repr(got) if got else "the end of the file", self._place())
