"""Which columns of a table hold captions, in which languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cclm.errors import ConfigError
from shards.corpora.rows import BadRow


@dataclass(frozen=True, kw_only=True)
class CaptionColumns:
    """One of three ways: a column by language; a text and a language column; a column with a map by language."""

    by_language: Mapping[str, str] = field(default_factory=dict)
    """Language -> column, for example {en: caption, de: caption_de}; a cell is a text or a list of texts."""
    text: str = ""
    """Column of a text (with `language` or `language_column`), or of a map from language to text."""
    language: str = ""
    """Language of `text`."""
    language_column: str = ""
    """Column of the language of `text`."""

    def columns(self) -> list[str]:
        """Return the columns to read.

        Raises:
            ConfigError: none is named.
        """
        names = [*self.by_language.values(), self.text, self.language_column]
        if not any(names[:-1]):
            raise ConfigError(
                expected="columns of captions",
                got="none",
                do="Set `captions: {by_language: {en: caption}}`, or `captions: {text: caption, language: en}`.",
            )
        return [name for name in dict.fromkeys(names) if name]

    def captions_of(self, row: Mapping[str, Any]) -> dict[str, list[str]] | BadRow:
        """Return a row's captions; languages without one are left out."""
        found = {language: row.get(column) for language, column in self.by_language.items()}
        if self.text:
            text = row.get(self.text)
            if isinstance(text, Mapping):
                found |= text
            elif text is not None:
                language = self.language or row.get(self.language_column)
                if not isinstance(language, str) or not language:
                    return BadRow(repr(language), expected="a language beside the text")
                found[language] = text
        captions = {language: _texts(value) for language, value in found.items() if value is not None}
        wrong = [language for language, texts in captions.items() if not all(isinstance(text, str) for text in texts)]
        return BadRow(f"no text in {', '.join(wrong)}", expected="texts") if wrong else captions


def _texts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
