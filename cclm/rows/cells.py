"""Cells: the one way from what stands in a file to texts, languages, numbers, identifiers and boxes.

A cell is what JSON, Arrow or a line of text gives: text, number, truth value, None, list, map, bytes. What a record
cannot use is refused with its entry (reasons line_broken, text_encoding, language_unknown): never cut into characters,
never spelled out as Python would.
"""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from cclm.languages import language_tag
from cclm.rows.guard import optional_library, refuse, shown

Captions = dict[str, list[str]]
"""Texts by language."""

_SCALARS: Final = (decimal.Decimal, datetime.date, datetime.time, datetime.timedelta, uuid.UUID)
"""Further values of Arrow that have one spelling and may be identifiers."""
_MAX_NUMBER: Final = 3e38
"""Larger ones have no place among 32-bit floats, as scores are stored."""


def text(cell: Any, what: str = "a text") -> str:
    """Return a text: whole Unicode characters, without a byte-order mark."""
    if type(cell) is str and cell.isascii() and "\0" not in cell:
        return cell  # most of them: a million rows need not pass all that follows
    if isinstance(cell, bytes):
        try:
            cell = cell.decode("utf-8")
        except UnicodeDecodeError:
            refuse("text_encoding", f"{what} in UTF-8", shown(cell))
    if not isinstance(cell, str):
        refuse("line_broken", what, shown(cell))
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        refuse("text_encoding", f"{what} of whole Unicode characters", f"half a character in {shown(cell)}")
    if "\0" in cell:
        refuse("text_encoding", f"{what} in UTF-8", f"a NUL character in {shown(cell)} (as UTF-16 has them)")
    return cell.removeprefix("\ufeff")


def optional(cell: Any, what: str = "a text") -> str:
    """Return a text; "" for None and for a blank one."""
    value = "" if cell is None else text(cell, what)
    return value if value.strip() else ""


def texts(cell: Any, what: str = "a text or a list of texts") -> list[str]:
    """Return the texts of a cell that holds one or a list of them."""
    return [text(item, what) for item in cell] if isinstance(cell, (list, tuple)) else [text(cell, what)]


def language(cell: Any) -> str:
    """Return the BCP 47 tag of a language's name (reason language_unknown)."""
    name = cell if isinstance(cell, str) else text("" if cell is None else cell, "a language")
    tag = language_tag(name)
    if tag is None:
        refuse("language_unknown", "a language, such as en, pt-BR or zh-Hant", shown(name) if name else "none")
    return tag


@lru_cache(maxsize=1)
def language_identifier(do: str) -> Any:
    """Return py3langid's model of 130 languages: `rank(text)` gives (language, probability), the likeliest first.

    `do`: what to do without the package (MissingDependencyError).
    """
    langid = optional_library("py3langid.langid", "it identifies languages", do=do)
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def captions(cell: Any, named: Any = None) -> Captions:
    """Return the texts of a cell by language.

    Args:
        cell: a map from language to a text or a list of texts (None: none in this language); a list of such maps; or,
            with a named language, a text or a list of texts. None: no texts.
        named: the language of texts that stand in no map.
    """
    if cell is None:
        return {}
    if isinstance(cell, Mapping):
        return gathered((language(name), texts(of_one)) for name, of_one in cell.items() if of_one is not None)
    if isinstance(cell, (list, tuple)) and cell:
        if all(isinstance(item, tuple) and len(item) == 2 for item in cell):  # how pyarrow returns a map
            return gathered((language(name), texts(of_one)) for name, of_one in cell if of_one is not None)
        if all(isinstance(item, Mapping) for item in cell):
            return gathered(item for one in cell for item in captions(one).items())
    of_one = texts(cell, "captions: a text, a list of texts, or a map by language")
    return {language(named): of_one}


def gathered(found: Iterable[tuple[str, Sequence[str]]]) -> Captions:
    """Return texts by language, those of one language behind each other."""
    by_language: Captions = {}
    for tag, of_one in found:
        by_language.setdefault(tag, []).extend(of_one)
    return by_language


def number(cell: Any, what: str = "a number") -> float:
    """Return a finite number, also one that is written as text."""
    value = math.nan
    is_number = isinstance(cell, (int, float, decimal.Decimal)) and not isinstance(cell, bool)
    if is_number or (isinstance(cell, str) and cell.isascii() and "_" not in cell):
        try:
            value = float(cell)
        except (ValueError, OverflowError):
            value = math.nan
    if not abs(value) < _MAX_NUMBER:
        refuse("line_broken", what, shown(cell))
    return value


def whole_number(cell: Any, what: str = "a whole number") -> int:
    """Return a whole number of at least 0, also one that is written as text."""
    value = number(cell, what)
    if value < 0 or not value.is_integer():
        refuse("line_broken", what, shown(cell))
    return int(cell if isinstance(cell, int) or (isinstance(cell, str) and cell.isdigit()) else value)


def identifier(cell: Any, what: str = "an identifier") -> str:
    """Return an identifier as text; "" for None and NaN.

    A whole float is taken for a whole number: a table with a missing one has lost its type.
    """
    if type(cell) is str:  # most of them
        return text(cell, what)
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, (int, float)):
        if not abs(cell) < _MAX_NUMBER:
            refuse("line_broken", what, shown(cell))
        return repr(float(cell)) if cell % 1 else str(int(cell))
    return str(cell) if isinstance(cell, _SCALARS) else text(cell, what)


def identifiers(row: Mapping[str, Any], columns: Iterable[str]) -> dict[str, str]:
    """Return the identifiers that a row has in some columns."""
    named: Iterator[tuple[str, str]] = ((column, identifier(row.get(column), column)) for column in columns)
    return {column: value for column, value in named if value}


def box(cells: Any, what: str = "a box of four numbers") -> tuple[float, float, float, float]:
    """Return x, y, width and height."""
    if not isinstance(cells, (list, tuple)) or len(cells) != 4:
        refuse("line_broken", what, shown(cells))
    x, y, width, height = (number(cell, what) for cell in cells)
    return x, y, width, height


def with_area(cells: Any, what: str) -> tuple[float, float, float, float]:
    """Return x, y, width and height of a box that has an area."""
    found = box(cells, what)
    return found if min(found[2:]) > 0 else refuse("line_broken", what, shown(found))


def mapping(cell: Any, what: str) -> Mapping[str, Any]:
    """Return a map."""
    return cell if type(cell) is dict or isinstance(cell, Mapping) else refuse("line_broken", what, shown(cell))


def listed(cell: Any, what: str) -> Sequence[Any]:
    """Return a list; an empty one for None."""
    if cell is None:
        return ()
    return cell if isinstance(cell, (list, tuple)) else refuse("line_broken", what, shown(cell))
