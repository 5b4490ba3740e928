"""Captions by language, and languages as recipes and names of files give them; `cclm.languages` is the table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Final, TypeVar

from cclm.languages import language_tag
from cclm.rows.cells import Captions, captions, gathered, texts
from cclm.rows.guard import mistaken
from cclm.types import LANGUAGE

Value = TypeVar("Value")

_ONE: Final = r"(?:[a-z]{2,3}|[a-z]{5,8})(?:[-_](?:[A-Z]{2}|[A-Z][a-z]{3})|[_@][A-Za-z]+)?"
_PAIRS: Final = tuple(re.compile(rf"(?:.*-)?({one})-({one})") for one in (_ONE, "[A-Za-z]{2,3}"))


class LanguageTag(str):
    """The tag of a language that a recipe names; "": none is named (ValueError: it is no text, or no language)."""

    reader_notes: ClassVar = (LANGUAGE,)

    def __new__(cls, name: object) -> LanguageTag:
        """Return the tag of a name."""
        if not isinstance(name, str):
            raise ValueError(f'expected a language, got {name!r} (YAML takes a bare no for false: write "no")')
        tag = language_tag(name) if name else ""
        if tag is None:
            raise ValueError(f"expected a language, such as en, pt-BR or zh-Hant, got {name!r}")
        return super().__new__(cls, tag)


NO_LANGUAGE: Final = LanguageTag("")
ENGLISH: Final = str.__new__(LanguageTag, "en")  # without the table, which takes a moment to load


def by_tag(named: Mapping[str, Value], option: str) -> dict[str, Value]:
    """Return a recipe's map by languages (ConfigError: a key is no language, or two are the same one)."""
    tags: dict[str, Value] = {}
    for name, value in named.items():
        try:
            tag = LanguageTag(name)
            if tag in tags or not tag:
                raise ValueError(f"expected each language once, got {name!r} again")
        except ValueError as error:
            got = str(error).partition("got ")[2]
            mistaken("languages as keys, each once", got, f"Correct `{option}`.", option)
        tags[tag] = value
    return tags


def pair_in(name: str) -> tuple[str, str] | None:
    """Return the two languages, as written, that a file's name holds: the last pair of known ones.

    "WikiMatrix.de-en.tsv.gz" -> ("de", "en"), "bible-uedin.en-zh_TW" -> ("en", "zh_TW"), "giga-fren-en-fr" -> (en, fr)
    """
    for segment in reversed(name.split(".")):
        for pattern in _PAIRS:
            found = pattern.fullmatch(segment)
            if found and language_tag(found[1]) and language_tag(found[2]):
                return found[1], found[2]
    return None


@dataclass(frozen=True, kw_only=True)
class CaptionColumns:
    """One of three ways: a column by language; a text and a language column; a column with a map by language."""

    by_language: Mapping[str, str] = field(default_factory=dict)
    """Language -> column, for example {en: caption, de: caption_de}; a cell is a text or a list of texts."""
    text: str = ""
    """Column of a text (with `language` or `language_column`), or of a map from language to text."""
    language: LanguageTag = NO_LANGUAGE
    """Language of `text`."""
    language_column: str = ""
    """Column of the language of `text`."""

    @cached_property
    def _columns_by_tag(self) -> dict[str, str]:
        return by_tag(self.by_language, "captions.by_language")

    def columns(self) -> list[str]:
        """Return the columns to read (ConfigError: none is named, or a language is none)."""
        names = [*self._columns_by_tag.values(), self.text, self.language_column]
        if not any(names[:-1]):
            do = "Set `captions: {by_language: {en: caption}}`, or `captions: {text: caption, language: en}`."
            mistaken("columns of captions", "none", do)
        return names

    def captions_of(self, row: Mapping[str, Any]) -> Captions:
        """Return a row's captions, without languages that have none (DataError: a cell holds something else)."""
        cells = ((tag, row.get(column)) for tag, column in self._columns_by_tag.items())
        found = gathered((tag, texts(cell)) for tag, cell in cells if cell is not None)
        if self.text:
            found |= captions(row.get(self.text), self.language or row.get(self.language_column))
        return found
