"""What corpora of images have in common: an image by reference, its texts, its boxes, and how they become a record.

Captions may come from a second file, joined by an id; so the published 4M's captions in six languages are made.

sbu-zh.tsv     id <TAB> text            a language for the whole file
cc3m.jsonl     {"image_id": "…", "caption": {"de": "…", "fr": "…"}}
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

from cclm.data.decoding import decode_image, stored_orientation
from cclm.model.image_rgb import SWAPS_SIDES
from cclm.rows.cells import Captions, captions, gathered, identifier
from cclm.rows.guard import bad, data_errors, mistaken, refuse, shown
from cclm.rows.lines import plain_suffix
from cclm.rows.tables import TABLE_SUFFIXES, Row, read_rows
from cclm.shardfile.codec import check_image, format_of
from cclm.types import ImageTextRecord, Region
from shards.corpora.files import NO_LANGUAGE, LanguageTag, named_files, one_part, path_list
from shards.parts import Keyed, LazyRecord, Part, Skipped, each, joined, refused

LoadImage = Callable[[], bytes]
"""Reads an encoded image: a `functools.partial` of a plain function. DataError: there is none."""


def image_format_of(image: bytes, where: str) -> str:
    """Return "jpg", "png" or "webp" by the first bytes (reasons image_empty, image_format, image_truncated)."""
    image_format = format_of(image)  # names lie, and URLs often have none
    check_image(image, image_format, where)
    return image_format


def image_size(image: bytes, where: str) -> tuple[int, int]:
    """Return width and height, turned upright (reasons image_broken, image_truncated)."""
    return decode_image(image, where=where).size  # decoded once here, rather than failing in every epoch


def load_first(folders: Sequence[Path], name: str) -> bytes:
    """Read the image of a name from the first folder that has it (reason image_missing)."""
    for folder in folders:
        path = folder / name
        if path.is_file():  # devices and pipes are none: reading them might never end
            with data_errors(str(path), "image_missing", "a readable file"):
                return path.read_bytes()
    return refuse("image_missing", f"{name} in {', '.join(map(str, folders))}", "no such file")


def load_span(path: Path, offset: int, size_bytes: int) -> bytes:
    """Read an image that lies inside a file, for example in a tar (reasons image_missing, image_truncated)."""
    where = f"{path}@{offset}"
    with data_errors(where, "image_missing", "a readable file"):
        status = path.stat()
        image = os.pread(_kept_open(path, status.st_ino, status.st_mtime_ns).fileno(), size_bytes, offset)
    if len(image) < size_bytes:
        refuse("image_truncated", f"{size_bytes} bytes", f"{len(image)} before the file ends", where)
    return image


@lru_cache(maxsize=16)
def _kept_open(path: Path, inode: int, changed_ns: int) -> BinaryIO:
    """Return an open file (a replaced one has another inode): records that follow each other lie in the same one."""
    return path.open("rb")


def fit_regions(
    regions: list[Region], size: tuple[int, int], annotated_size: tuple[int, int] | None, orientation: int = 1
) -> list[Region]:
    """Turn boxes upright, scale them to the stored image, clip them to it; return those that have an area left.

    Boxes are pixels of the annotated file (None: the stored one) before its EXIF orientation turns it, unless the
    annotated size is that of the image after turning; `size` is that of the stored image, upright.
    """
    width, height = size
    frame = (height, width) if orientation in SWAPS_SIDES else size
    if annotated_size and (annotated_size[0] - annotated_size[1]) * (frame[0] - frame[1]) < 0:  # drawn upright
        frame, orientation = size, 1
    scale_x = frame[0] / annotated_size[0] if annotated_size else 1.0
    scale_y = frame[1] / annotated_size[1] if annotated_size else 1.0
    kept = []
    for region in regions:
        x, y, w, h = region.box
        corners = (x * scale_x, y * scale_y, (x + w) * scale_x, (y + h) * scale_y)
        left, top, right, bottom = turn_corners(corners, frame, orientation)
        left, top, right, bottom = max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
        # Training crops to whole pixels (the published code casts to int): a box of less than one has nothing to show.
        if right - left >= 1 and bottom - top >= 1:
            kept.append(replace(region, box=(left, top, right - left, bottom - top)))
    return kept


def turn_corners(
    corners: tuple[float, float, float, float], size: tuple[int, int], orientation: int
) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of a box after its image (width, height) was turned as the EXIF tag says."""
    left, top, right, bottom = corners
    if orientation in (2, 3, 7, 8):
        left, right = size[0] - right, size[0] - left
    if orientation in (3, 4, 6, 7):
        top, bottom = size[1] - bottom, size[1] - top
    return (top, left, bottom, right) if orientation in SWAPS_SIDES else (left, top, right, bottom)


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
    DataError: reasons captions_empty, image_missing, image_empty, image_format, image_truncated, image_broken."""
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
