"""Captions from a second file, joined by an id: how the published 4M's captions in six languages are made.

sbu-zh.tsv     id <TAB> text            a language for the whole file
cc3m.jsonl     {"image_id": "…", "caption": {"de": "…", "fr": "…"}}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cclm.errors import DataError
from shards.corpora.cells import Captions, captions, gathered, identifier
from shards.corpora.files import named_files, one_part, part_of_each, plain_suffix
from shards.corpora.image_row import ImageRow, lazy_images
from shards.corpora.languages import NO_LANGUAGE, LanguageTag
from shards.corpora.refusal import each, joined, refuse, refused
from shards.corpora.rows import TABLE_SUFFIXES, Row, read_rows
from shards.guard import MEND
from shards.parts import LazyRecord, Part, Skipped

Rows = Callable[[], Iterator[ImageRow | LazyRecord | Skipped]]
RowsOfFile = Callable[[str, Path], Iterator[ImageRow | LazyRecord | Skipped]]


@dataclass(frozen=True, kw_only=True)
class Translations:
    """Files of captions by id."""

    path: Path | Sequence[Path]
    """Files (.tsv, .csv, .jsonl, also compressed, .parquet, .arrow), folders or patterns."""
    join_on: str = "image_id"
    """Which of a picture's ids (docs/corpora.md lists them by corpus) the column `id` holds."""
    id: str = "id"
    """Column of the id."""
    text: str = "text"
    """Column of the text; in .jsonl and .parquet it may hold a map from language to text, or a list of texts."""
    language: LanguageTag = NO_LANGUAGE
    """Language of all texts; empty: a column (or a map) says it."""
    language_column: str = "language"
    """Column of the language, where `language` is empty and the text is no map."""
    columns: Sequence[str] = ()
    """All columns of a TSV or CSV file without a header line."""

    def files(self) -> dict[str, Path]:
        """Return the files by name."""
        return named_files(self.path, TABLE_SUFFIXES)

    def entries(self, source: str) -> Iterator[tuple[str, tuple[str, Captions]] | LazyRecord]:
        """Yield (id, (place, captions)), and refusals."""
        for name, path in self.files().items():
            needed = [self.id, self.text]
            if not self.language and plain_suffix(path) in (".tsv", ".csv"):
                needed.append(self.language_column)
            yield from each(read_rows(name, path, needed=needed, columns=self.columns), self._entry, source)

    def _entry(self, place: str, row: Row) -> Iterator[tuple[str, tuple[str, Captions]]]:
        identity = identifier(row.get(self.id), self.id)
        found = captions(row.get(self.text), self.language or row.get(self.language_column))
        if not identity or not found:
            got = "no text" if identity else "no id"
            refuse("line_broken", f'an id in "{self.id}", a text in "{self.text}" and a language', got)
        yield identity, (place, found)


def parts_of_each(
    files: Mapping[str, Path], rows: RowsOfFile, translations: Sequence[Translations], source: str
) -> list[Part]:
    """Return a part per file, or one for all of them with their translations; `rows(name, path)` yields pictures."""
    if translations:
        every = partial(_rows_of_all, files, rows)
        return part_of_all("joined", every, files.values(), translations, source)
    return part_of_each(files, partial(_read, rows))


def part_of_all(
    name: str, rows: Rows, files: Iterable[Path], translations: Sequence[Translations] = (), source: str = ""
) -> list[Part]:
    """Return one part; `rows()` yields the pictures of all files."""
    read = partial(_read_all, rows, translations, source)
    return one_part(name, read, [*files, *(path for one in translations for path in one.files().values())])


def _rows_of_all(files: Mapping[str, Path], rows: RowsOfFile) -> Iterator[ImageRow | LazyRecord | Skipped]:
    for name, path in files.items():
        yield from rows(name, path)


def _read(rows: RowsOfFile, name: str, path: Path) -> Iterator[LazyRecord | Skipped]:
    return lazy_images(rows(name, path))


def _read_all(rows: Rows, translations: Sequence[Translations], source: str) -> Iterator[LazyRecord | Skipped]:
    return lazy_images(with_translations(rows(), translations, source))


def with_translations(
    rows: Iterable[ImageRow | LazyRecord | Skipped], translations: Sequence[Translations], source: str
) -> Iterator[ImageRow | LazyRecord | Skipped]:
    """Yield the pictures with the captions that the files have for them.

    Memory is bounded (`shards/corpora/spill.py`). Pictures without a translation keep the captions they have. An
    entry that finds no picture is refused (reason translation_unmatched): the counts show a wrong id at once.
    """
    for one in translations:
        rows = joined(_items(rows, one, source), partial(_with_captions, one, source), source)
    return iter(rows)


def _items(
    rows: Iterable[ImageRow | LazyRecord | Skipped], translations: Translations, source: str
) -> Iterator[tuple[str, Any] | LazyRecord | Skipped]:
    for number, row in enumerate(rows):
        if not isinstance(row, ImageRow):
            yield row
        elif translations.join_on in row.ids:
            yield f"i{row.ids[translations.join_on]}", row
        else:
            yield f"r{number}", row
    for entry in translations.entries(source):
        yield entry if isinstance(entry, LazyRecord) else (f"i{entry[0]}", entry[1])


def _with_captions(
    translations: Translations, source: str, key: str, items: Sequence[ImageRow | tuple[str, Captions]]
) -> Iterator[ImageRow | LazyRecord]:
    pictures = [item for item in items if isinstance(item, ImageRow)]
    entries = [item for item in items if not isinstance(item, ImageRow)]
    for picture in pictures:
        found = gathered([*picture.captions.items(), *(item for _, added in entries for item in added.items())])
        yield replace(picture, captions=found)
    for place, _ in entries if not pictures else ():
        yield unmatched(place, source, f"a picture with {translations.join_on} {key[1:]}")


def unmatched(place: str, source: str, expected: str) -> LazyRecord:
    """Return the refusal of a translation of nothing."""
    error = DataError(reason="translation_unmatched", expected=expected, got="none", do=MEND, where=place)
    return refused(error, f"translation {place}", source)
