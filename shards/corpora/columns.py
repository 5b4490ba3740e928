"""Tables with a row an image: which columns hold its captions, in which languages, its ids and licence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shards.corpora.cells import (
    NO_LANGUAGE,
    Captions,
    LanguageTag,
    by_tag,
    captions,
    gathered,
    identifiers,
    optional,
    texts,
)
from shards.corpora.image_corpus import ImageCorpus
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
        return names

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


@dataclass(frozen=True, kw_only=True)
class ColumnImages(ImageCorpus):
    """A corpus of images whose texts stand in columns."""

    captions: CaptionColumns
    """The columns of captions."""
    ids: Sequence[str] = ()
    """Columns to keep as ids, beside those that the corpus has by itself."""
    licence_column: str = ""
    """Column of the licence, where images differ."""

    def check(self) -> None:
        """Raise a ConfigError where no column of captions is named, or a language is none."""
        self.captions.columns()

    def wanted(self, *more: str) -> list[str]:
        """Return the columns to read, each once: some more, and those of the options (errors: see `CaptionColumns`)."""
        names = dict.fromkeys((*more, *self.captions.columns(), *self.ids, self.licence_column))
        return [name for name in names if name]

    def of_row(self, row: Mapping[str, Any], /, **ids: str) -> dict[str, Any]:
        """Return an image's captions, licence and ids: those of the options, and some more."""
        return {
            "captions": self.captions.captions_of(row),
            "licence": optional(row.get(self.licence_column), "a licence"),
            "ids": ids | identifiers(row, self.ids),
        }
