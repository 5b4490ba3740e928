"""The line formats of the published CCLM code, so that its data sets move over as they are.

pictures   {"binary": BASE64, "caption": {"en": "…", "zh": "…"}}; `caption` may be a list of such maps
regions    the same with "elems": [{"caption": {…} or [{…}], "bb": [x, y, w, h], "attributes": {…} or [{…}]}, …]
pairs      {"source_text": "…", "target_text": "…"}

Pictures are read by position when their record is made, so their files must not be compressed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.errors import ConfigError
from cclm.types import ImageTextRecord, Region
from shards.corpora.files import COMPRESSIONS, line_ranges, lines_in, named_files, numbered_lines
from shards.corpora.image_row import ImageRow, key_of, make_record
from shards.corpora.pair_record import lazy_pair
from shards.corpora.picture import load_file, load_span
from shards.corpora.refusal import broken_row, first, refuse
from shards.corpora.rows import BadRow, parse_object
from shards.parts import LazyRecord, Part, file_stamp

PART_BYTES: Final = 256 << 20
"""Larger files are read in pieces of this size."""

Texts = Mapping[str, Any] | Sequence[Any] | None
"""A map from language to a text (or to several), or a list of such maps."""


@dataclass(frozen=True, kw_only=True)
class PublishedImages:
    """Lines with a picture, its captions and its regions: one record a line."""

    path: Path | Sequence[Path]
    """Files (of any name), folders or patterns."""
    source: str
    """The corpus's name."""
    licence: str = "unknown"
    """SPDX tag of the pictures."""
    image_folder: Path | None = None
    """Given: `binary` is a path relative to this folder (the published `is_image_rpath`)."""
    languages: Sequence[str] = ()
    """Given: captions in other languages are left out (the published `language_chosen`)."""
    image_key: str = "binary"
    """Field of the picture."""
    caption_key: str = "caption"
    """Field of the captions."""

    def parts(self) -> Sequence[Part]:
        """Find the files and cut large ones."""
        parts = []
        for name, path in named_files(self.path, ()).items():
            if path.suffix in COMPRESSIONS:
                raise ConfigError(
                    expected="a file that is not compressed (pictures are read by position)",
                    got=path.name,
                    do="Unpack it first.",
                    where=str(path),
                )
            for start, stop in line_ranges(path, PART_BYTES):
                read = partial(self.read, name, path, start, stop)
                parts.append(Part(name=f"{name}@{start}", read=read, stamp=file_stamp(path)))
        return parts

    def read(self, name: str, path: Path, start: int, stop: int) -> Iterator[LazyRecord]:
        """Yield one draft a line, with its place only."""
        for offset, line in lines_in(path, start, stop):
            if line.strip():
                place = f"{name}@{offset}"
                make = partial(self.make, path, offset, len(line), place)
                yield LazyRecord(key=key_of(place), source=self.source, make=make)

    def make(self, path: Path, offset: int, size_bytes: int, place: str) -> ImageTextRecord:
        """Read the line at a position."""
        line = parse_object(load_span(path, offset, size_bytes))
        if isinstance(line, BadRow):
            refuse("line_broken", line.expected, line.why, place)
        image, ids = self._image(line.get(self.image_key), place), {"place": place}
        try:
            captions = _merged(line.get(self.caption_key), self.languages)
            regions = [_region(element, self.languages) for element in line.get("elems") or ()]
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            refuse("line_broken", "captions and elems in the published form", f"{type(error).__name__} {error}", place)
        row = ImageRow(
            key=key_of(place),
            image=partial(bytes, image),
            # The published code takes pictures without a caption for their regions' texts alone.
            captions=captions or _all_of(regions),
            source=self.source,
            licence=self.licence,
            # Files hold a line per caption: the same picture again must not become its own negative.
            identity=hashlib.sha256(image).hexdigest()[:16],
            ids=ids,
            regions=regions,
            where=place,
        )
        return make_record(row)

    def _image(self, value: object, place: str) -> bytes:
        if not isinstance(value, str) or not value:
            refuse("image_missing", f'a text in the field "{self.image_key}"', first(value), place)
        if self.image_folder is not None:
            return load_file(self.image_folder / value)
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            refuse("base64_broken", "a picture in base64", f"{error} in {first(value, 40)}", place)


@dataclass(frozen=True, kw_only=True)
class PublishedPairs:
    """Lines with a sentence and its translation. They name no languages, so the recipe does."""

    path: Path | Sequence[Path]
    """Files (of any name, also compressed), folders or patterns, all in one pair of languages."""
    lang_a: str
    """Language of `source_text`; "und" where it is not known."""
    lang_b: str
    """Language of `target_text`."""
    source: str
    """The corpus's name."""
    key_a: str = "source_text"
    """Field of the sentence."""
    key_b: str = "target_text"
    """Field of its translation."""

    def parts(self) -> Sequence[Part]:
        """Find the files."""
        files = named_files(self.path, ())
        return [
            Part(name=name, read=partial(self.read, name, path), stamp=file_stamp(path)) for name, path in files.items()
        ]

    def read(self, name: str, path: Path) -> Iterator[LazyRecord]:
        """Yield one draft a line."""
        for number, line in numbered_lines(path):
            row = parse_object(line) if isinstance(line, bytes) else BadRow(str(line), tail=True)
            if isinstance(row, BadRow):
                if row.tail or line != b"":
                    yield row.draft(name, number, self.source)
                continue
            texts = row.get(self.key_a), row.get(self.key_b)
            if not all(isinstance(text, str) for text in texts):
                expected = f'texts in the fields "{self.key_a}" and "{self.key_b}"'
                yield broken_row(name, number, self.source, first(row), expected)
                continue
            yield lazy_pair(
                text_a=str(texts[0]),
                lang_a=self.lang_a,
                text_b=str(texts[1]),
                lang_b=self.lang_b,
                source=self.source,
                where=f"{name}:{number}",
            )


def _merged(texts: Texts, languages: Sequence[str]) -> dict[str, list[str]]:
    merged: dict[str, list[str]] = {}
    maps: Sequence[Any] = texts if isinstance(texts, list) else [texts or {}]
    for one in maps:
        for language, text in one.items():
            if not languages or language in languages:
                merged.setdefault(language, []).extend([text] if isinstance(text, str) else text)
    return merged


def _region(element: Mapping[str, Any], languages: Sequence[str]) -> Region:
    """Return a region; its attributes stay apart, because training decides how they are said."""
    x, y, width, height = (float(number) for number in element["bb"])
    return Region(
        box=(x, y, width, height),
        captions=_merged(element["caption"], languages),
        attributes=_merged(element.get("attributes"), languages),
    )


def _all_of(regions: Sequence[Region]) -> dict[str, list[str]]:
    return _merged([region.captions for region in regions], ())
