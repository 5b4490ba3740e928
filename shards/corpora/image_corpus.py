"""What corpora of images have in common: an image by reference, its texts, and how both become a record.

Captions may come from a second file, joined by an id; so the published 4M's captions in six languages are made.

sbu-zh.tsv     id <TAB> text            a language for the whole file
cc3m.jsonl     {"image_id": "…", "caption": {"de": "…", "fr": "…"}}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from cclm.data.decoding import stored_orientation
from cclm.rows.cells import Captions, captions, gathered, identifier
from cclm.rows.guard import bad, data_errors, mistaken, refuse, shown
from cclm.rows.lines import plain_suffix
from cclm.rows.tables import TABLE_SUFFIXES, Row, read_rows
from cclm.types import ImageTextRecord, Region
from shards.corpora.cells import NO_LANGUAGE, LanguageTag
from shards.corpora.entries import Keyed, each, joined, refused
from shards.corpora.files import named_files, one_part, path_list
from shards.corpora.image_bytes import LoadImage, fit_regions, image_format_of, image_size, load_first
from shards.parts import LazyRecord, Part, Skipped

IDS_REGIONS_LEFT_OUT = "regions_left_out"
"""In a record's ids: how many of its boxes lie outside the image or have no text."""


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """An image by reference, with its texts."""

    key: str
    """Unique in the corpus; `key_of` makes one of anything."""
    image: LoadImage
    captions: Captions
    """As annotated; blank ones are dropped when the record is made."""
    source: str
    licence: str
    identity: str = ""
    """What the image shows; empty: the record's key, so that no other record shows the same."""
    ids: Mapping[str, str] = field(default_factory=dict)
    """Identifiers in the corpus; translations are joined on one of them."""
    regions: Sequence[Region] = ()
    """Boxes in pixels of the annotated image."""
    annotated_size: tuple[int, int] | None = None
    """Width and height of the annotated image, where the corpus says; the stored one may be a smaller copy."""
    where: str = ""
    """File and row, for messages."""


ImageRows = Iterator[ImageRow | LazyRecord | Skipped]
"""Images, refusals, and counts of what was skipped."""


def make_record(row: ImageRow) -> ImageTextRecord:
    """Read the image and check everything.

    Raises:
        DataError: reasons captions_empty, image_missing, image_empty, image_format, image_truncated, image_broken.
    """
    of_image = _without_blanks(row.captions)
    if not of_image:
        refuse("captions_empty", "a caption that is not blank", shown(row.captions), row.where)
    with data_errors(row.where):
        image = row.image()
    image_format = image_format_of(image, row.where)
    size = image_size(image, row.where)
    worded = [
        replace(region, captions=texts, attributes=_without_blanks(region.attributes))
        for region in row.regions
        if (texts := _without_blanks(region.captions))
    ]
    regions = fit_regions(worded, size, row.annotated_size, stored_orientation(image))
    left_out = len(row.regions) - len(regions)
    return ImageTextRecord(
        key=row.key,
        image=image,
        image_format=image_format,
        captions=of_image,
        source=row.source,
        licence=row.licence,
        identity=row.identity,
        ids={**row.ids, **({IDS_REGIONS_LEFT_OUT: str(left_out)} if left_out else {})},
        regions=tuple(regions),
    )


def _without_blanks(texts: Mapping[str, Sequence[str]]) -> Captions:
    """Return the texts that are not blank, unchanged; languages left without one are gone."""
    kept = {language: [text for text in of_one if text.strip()] for language, of_one in texts.items()}
    return {language: of_one for language, of_one in kept.items() if of_one}


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

    def by_id(self, images: ImageRows, source: str) -> Keyed:
        """Yield images and the captions for them by the id that they are joined on."""
        for number, row in enumerate(images):
            if not isinstance(row, ImageRow):
                yield row
            else:
                yield f"i{row.ids[self.join_on]}" if self.join_on in row.ids else f"r{number}", row
        for entry in self.entries(source):
            yield entry if isinstance(entry, LazyRecord) else (f"i{entry[0]}", entry[1])

    def added(self, source: str, key: str, items: Sequence[ImageRow | tuple[str, Captions]]) -> ImageRows:
        """Yield the images of one id with the captions for them; captions without an image are refused."""
        images = [item for item in items if isinstance(item, ImageRow)]
        entries = [item for item in items if not isinstance(item, ImageRow)]
        for row in images:
            found = gathered([*row.captions.items(), *(item for _, added in entries for item in added.items())])
            yield replace(row, captions=found)
        for place, _ in entries if not images else ():
            yield unmatched(place, source, f"an image with {self.join_on} {key[1:]}")


def unmatched(place: str, source: str, expected: str) -> LazyRecord:
    """Return the refusal of a translation of nothing."""
    return refused(bad("translation_unmatched", expected, "none", place), f"translation {place}", source)


@dataclass(frozen=True, kw_only=True)
class ImageCorpus:
    """The options of every corpus of images, and how its images become records."""

    source: str
    """The corpus's name."""
    licence: str = "unknown"
    """SPDX tag of images for which the corpus names none."""
    translations: Sequence[Translations] = ()
    """Further captions, joined on one of the ids (docs/corpora.md names them); with them all files are one part."""

    def check(self) -> None:
        """Raise a ConfigError where options are wrong: asked before a build, and again in each process that reads."""

    def image_row(self, *, key: str, image: LoadImage, captions: Captions, where: str, **more: Any) -> ImageRow:
        """Return an image of this corpus (more: further fields of `ImageRow`)."""
        more |= {"source": more.get("source") or self.source, "licence": more.get("licence") or self.licence}
        return ImageRow(key=key, image=image, captions=captions, where=where, **more)

    def parts_of_each(self, files: Mapping[str, Path], images: Callable[[str, Path], ImageRows]) -> list[Part]:
        """Return a part per file, whose images `images(name, path)` yields."""
        if self.translations:
            return self.part_of_all("joined", partial(_images_of_all, files, images), files.values())
        return [
            part for name, path in files.items() for part in self.part_of_all(name, partial(images, name, path), [path])
        ]

    def part_of_all(self, name: str, images: Callable[[], ImageRows], files: Iterable[Path]) -> list[Part]:
        """Return one part for many files, whose images `images()` yields."""
        self.check()
        further = [path for one in self.translations for path in one.files().values()]
        return one_part(name, partial(self._records, images), [*files, *further])

    def _records(self, images: Callable[[], ImageRows]) -> Iterator[LazyRecord | Skipped]:
        """Yield the images with the captions that the files of translations have for them.

        Memory is bounded (`joined`). Images without a translation keep the captions they have. An entry that finds no
        image is refused (reason translation_unmatched): the counts show a wrong id at once.
        """
        self.check()
        found = images()
        for one in self.translations:
            found = joined(one.by_id(found, self.source), partial(one.added, self.source), self.source)
        for row in found:
            if isinstance(row, ImageRow):
                yield LazyRecord(key=row.key, source=row.source, make=partial(make_record, row))
            else:
                yield row


def _images_of_all(files: Mapping[str, Path], images: Callable[[str, Path], ImageRows]) -> ImageRows:
    for name, path in files.items():
        yield from images(name, path)


@dataclass(frozen=True, kw_only=True)
class NamedImages(ImageCorpus):
    """A corpus whose annotations name images in folders."""

    images: Path | Sequence[Path]
    """Folders of images; of one that several have, the first is read."""

    def check(self) -> None:
        """Raise a ConfigError where a folder is not there: at once, rather than once for each of its images."""
        for folder in path_list(self.images):
            if not folder.is_dir():
                mistaken("a folder of images", "no such folder", "Correct `images`.", folder)

    def image_named(self, name: str) -> LoadImage:
        """Return what reads the image of a name."""
        return partial(load_first, path_list(self.images), name)
