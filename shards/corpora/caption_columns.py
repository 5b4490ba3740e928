"""Which columns of a table hold captions, in which languages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shards.corpora.cells import Captions, captions, gathered, texts
from shards.corpora.languages import NO_LANGUAGE, LanguageTag, by_tag
from shards.guard import mistaken


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
        """Return the columns to read.

        Raises:
            ConfigError: none is named, or a language is none.
        """
        names = [*self._columns_by_tag.values(), self.text, self.language_column]
        if not any(names[:-1]):
            do = "Set `captions: {by_language: {en: caption}}`, or `captions: {text: caption, language: en}`."
            mistaken("columns of captions", "none", do)
        return [name for name in dict.fromkeys(names) if name]

    def captions_of(self, row: Mapping[str, Any]) -> Captions:
        """Return a row's captions; languages without one are left out.

        Raises:
            DataError: a cell holds something else.
        """
        cells = ((tag, row.get(column)) for tag, column in self._columns_by_tag.items())
        found = gathered((tag, texts(cell)) for tag, cell in cells if cell is not None)
        if self.text:
            found |= captions(row.get(self.text), self.language or row.get(self.language_column))
        return found
