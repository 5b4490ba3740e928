"""Captions from a second file, joined by an id: how the published 4M's captions in six languages are made.

sbu-zh.tsv     id <TAB> text            a language for the whole file
cc3m.jsonl     {"image_id": "…", "caption": {"de": "…", "fr": "…"}}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shards.corpora.files import named_files, plain_suffix
from shards.corpora.image_row import ImageRow
from shards.corpora.refusal import first, refused
from shards.corpora.rows import TABLE_SUFFIXES, BadRow, read_rows
from shards.corpora.spill import grouped
from shards.parts import LazyRecord


@dataclass(frozen=True, kw_only=True)
class Translations:
    """Files of captions by id."""

    path: Path | Sequence[Path]
    """Files (.tsv, .csv, .jsonl, .parquet, also compressed), folders or patterns."""
    join_on: str = "image_id"
    """Which of a picture's ids (docs/corpora.md lists them by corpus) the column `id` holds."""
    id: str = "id"
    """Column of the id."""
    text: str = "text"
    """Column of the text; in .jsonl and .parquet it may hold a map from language to text, or a list of texts."""
    language: str = ""
    """Language of all texts; empty: a column (or a map) says it."""
    language_column: str = "language"
    """Column of the language, where `language` is empty and the text is no map."""
    columns: Sequence[str] = ()
    """All columns of a TSV or CSV file without a header line."""

    def files(self) -> dict[str, Path]:
        """Return the files by name."""
        return named_files(self.path, TABLE_SUFFIXES)

    def entries(self) -> Iterator[tuple[str, str, dict[str, list[str]] | BadRow]]:
        """Yield (place, id, captions)."""
        for name, path in self.files().items():
            needed = [self.id, self.text]
            if not self.language and plain_suffix(path) in (".tsv", ".csv"):
                needed.append(self.language_column)
            for number, row in read_rows(path, needed=needed, columns=self.columns):
                yield self._entry(f"{name}:{number}", row)

    def _entry(self, place: str, row: Mapping[str, Any] | BadRow) -> tuple[str, str, dict[str, list[str]] | BadRow]:
        if isinstance(row, BadRow):
            return place, "", row
        text = row.get(self.text)
        texts = text if isinstance(text, Mapping) else {self.language or row.get(self.language_column): text}
        captions: dict[str, list[str]] = {}
        fine = row.get(self.id) not in (None, "")
        for language, one in texts.items():
            if one is None and isinstance(text, Mapping):
                continue  # a map of Parquet holds None for languages that this row does not have
            listed = [one] if isinstance(one, str) else list(one) if isinstance(one, Sequence) else []
            fine = fine and bool(language and listed) and all(isinstance(item, str) for item in listed)
            captions[str(language)] = listed
        if not fine or not captions:
            expected = f'an id in "{self.id}", a text in "{self.text}" and a language'
            return place, "", BadRow(first(dict(row)), expected=expected)
        return place, str(row[self.id]), captions


def with_translations(
    rows: Iterable[ImageRow | LazyRecord], translations: Sequence[Translations], source: str
) -> Iterator[ImageRow | LazyRecord]:
    """Yield the pictures with the captions that the files have for them.

    Memory is bounded (`shards/corpora/spill.py`). Pictures without a translation keep the captions they have. An
    entry that finds no picture is refused (reason translation_unmatched): the counts show a wrong id at once.
    """
    joined: Iterator[ImageRow | LazyRecord] = iter(rows)
    for one in translations:
        joined = _joined(joined, one, source)
    return joined


def _joined(
    rows: Iterable[ImageRow | LazyRecord], translations: Translations, source: str
) -> Iterator[ImageRow | LazyRecord]:
    for _, items in grouped(_items(rows, translations, source)):
        pictures = [item for item in items if isinstance(item, ImageRow)]
        yield from (item for item in items if isinstance(item, LazyRecord))
        entries = [item for item in items if isinstance(item, tuple)]
        if not pictures:
            yield from (_unmatched(place, identity, translations, source) for place, identity, _ in entries)
        for picture in pictures:
            captions = {language: list(texts) for language, texts in picture.captions.items()}
            for _, _, added in entries:
                for language, texts in added.items():
                    captions.setdefault(language, []).extend(texts)
            yield replace(picture, captions=captions)


def _items(
    rows: Iterable[ImageRow | LazyRecord], translations: Translations, source: str
) -> Iterator[tuple[str, ImageRow | LazyRecord | tuple[str, str, dict[str, list[str]]]]]:
    for number, row in enumerate(rows):
        if isinstance(row, ImageRow) and translations.join_on in row.ids:
            yield f"i{row.ids[translations.join_on]}", row
        else:
            yield f"r{number}", row
    for place, identity, captions in translations.entries():
        if isinstance(captions, BadRow):
            name, _, number_text = place.rpartition(":")
            yield f"b{place}", captions.draft(name, int(number_text), source)
        else:
            yield f"i{identity}", (place, identity, captions)


def _unmatched(place: str, identity: str, translations: Translations, source: str) -> LazyRecord:
    return refused(
        key=f"translation {place}",
        source=source,
        reason="translation_unmatched",
        expected=f"a picture with {translations.join_on} {identity}",
        got="none",
        where=place,
        do="Correct `join_on` or `id` in the recipe, or leave the entry out.",
    )
