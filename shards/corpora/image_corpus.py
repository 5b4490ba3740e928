"""What corpora of images have in common, among it captions from a second file, joined by an id.

sbu-zh.tsv     id <TAB> text            a language for the whole file
cc3m.jsonl     {"image_id": "…", "caption": {"de": "…", "fr": "…"}}

So the published 4M's captions in six languages are made.
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
from shards.corpora.image_bytes import LoadImage
from shards.corpora.image_row import ImageRow, lazy_images
from shards.corpora.languages import NO_LANGUAGE, LanguageTag
from shards.corpora.refusal import each, joined, refuse, refused
from shards.corpora.rows import TABLE_SUFFIXES, Row, read_rows
from shards.guard import MEND
from shards.parts import LazyRecord, Part, Skipped

ImageRows = Iterator[ImageRow | LazyRecord | Skipped]


@dataclass(frozen=True, kw_only=True)
class Translations:
    """Files of captions by id."""

    path: Path | Sequence[Path]
    """Files (.tsv, .csv, .jsonl, also compressed, .parquet, .arrow), folders or patterns."""
    join_on: str = "image_id"
    """Which of an image's ids (docs/corpora.md lists them by corpus) the column `id` holds."""
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


@dataclass(frozen=True, kw_only=True)
class ImageCorpus:
    """The options of every corpus of images, and how its images become records."""

    source: str
    """The corpus's name."""
    licence: str = "unknown"
    """SPDX tag of images for which the corpus names none."""
    translations: Sequence[Translations] = ()
    """Further captions, joined on one of the ids (docs/corpora.md names them); with them all files are one part."""

    def image_row(self, *, key: str, image: LoadImage, captions: Captions, where: str, **more: Any) -> ImageRow:
        """Return an image of this corpus (more: further fields of `ImageRow`)."""
        more |= {"source": more.get("source") or self.source, "licence": more.get("licence") or self.licence}
        return ImageRow(key=key, image=image, captions=captions, where=where, **more)

    def parts_of_each(self, files: Mapping[str, Path], images: Callable[[str, Path], ImageRows]) -> list[Part]:
        """Return a part per file, whose images `images(name, path)` yields."""
        if self.translations:
            return self.part_of_all("joined", partial(_images_of_all, files, images), files.values())
        return part_of_each(files, partial(_records, images))

    def part_of_all(self, name: str, images: Callable[[], ImageRows], files: Iterable[Path]) -> list[Part]:
        """Return one part for many files, whose images `images()` yields."""
        further = [path for one in self.translations for path in one.files().values()]
        return one_part(name, partial(self._translated, images), [*files, *further])

    def _translated(self, images: Callable[[], ImageRows]) -> Iterator[LazyRecord | Skipped]:
        """Yield the images with the captions that the files of translations have for them.

        Memory is bounded (`shards/corpora/spill.py`). Images without a translation keep the captions they have. An
        entry that finds no image is refused (reason translation_unmatched): the counts show a wrong id at once.
        """
        found = images()
        for one in self.translations:
            found = joined(_by_id(found, one, self.source), partial(_with_captions, one, self.source), self.source)
        return lazy_images(found)


def _images_of_all(files: Mapping[str, Path], images: Callable[[str, Path], ImageRows]) -> ImageRows:
    for name, path in files.items():
        yield from images(name, path)


def _records(images: Callable[[str, Path], ImageRows], name: str, path: Path) -> Iterator[LazyRecord | Skipped]:
    return lazy_images(images(name, path))


def _by_id(found: ImageRows, one: Translations, source: str) -> Iterator[tuple[str, Any] | LazyRecord | Skipped]:
    for number, row in enumerate(found):
        if not isinstance(row, ImageRow):
            yield row
        elif one.join_on in row.ids:
            yield f"i{row.ids[one.join_on]}", row
        else:
            yield f"r{number}", row
    for entry in one.entries(source):
        yield entry if isinstance(entry, LazyRecord) else (f"i{entry[0]}", entry[1])


def _with_captions(
    one: Translations, source: str, key: str, items: Sequence[ImageRow | tuple[str, Captions]]
) -> Iterator[ImageRow | LazyRecord]:
    images = [item for item in items if isinstance(item, ImageRow)]
    entries = [item for item in items if not isinstance(item, ImageRow)]
    for row in images:
        found = gathered([*row.captions.items(), *(item for _, added in entries for item in added.items())])
        yield replace(row, captions=found)
    for place, _ in entries if not images else ():
        yield unmatched(place, source, f"an image with {one.join_on} {key[1:]}")


def unmatched(place: str, source: str, expected: str) -> LazyRecord:
    """Return the refusal of a translation of nothing."""
    error = DataError(reason="translation_unmatched", expected=expected, got="none", do=MEND, where=place)
    return refused(error, f"translation {place}", source)
