"""The line formats of the published CCLM code, so that its data sets move over as they are.

images     {"binary": BASE64, "caption": {"en": "…", "zh": "…"}}; `caption` may be a list of such maps
regions    the same with "elems": [{"caption": {…} or [{…}], "bb": [x, y, w, h], "attributes": {…} or [{…}]}, …]
pairs      {"source_text": "…", "target_text": "…"}

Images are read by position when their record is made, so their files must not be compressed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.annotations.images import key_of
from cclm.errors import DataError
from cclm.rows.cells import Captions, box, captions, gathered, listed, mapping, text
from cclm.rows.guard import data_errors, guarded, mistaken, refuse, shown
from cclm.rows.lines import COMPRESSIONS, lines_in, parsed_lines
from cclm.rows.tables import Row, parse_object
from cclm.types import ImageTextRecord, Region
from shards.corpora.files import LanguageTag, named_files
from shards.corpora.image_corpus import ImageRow, load_first, load_span, make_record
from shards.corpora.pair_file import PairFiles, Pairs, lazy_pair
from shards.parts import LazyRecord, Part, file_stamp

PART_BYTES: Final = 256 << 20
"""Larger files are read in pieces of this size."""
MAX_LINE_BYTES: Final = 512 << 20
"""Longer lines are refused."""


@dataclass(frozen=True, kw_only=True)
class PublishedImages:
    """Lines with an image, its captions and its regions: one record a line."""

    path: Path | Sequence[Path]
    """Files (of any name), folders or patterns."""
    source: str
    """The corpus's name."""
    licence: str = "unknown"
    """SPDX tag of the images."""
    image_folder: Path | None = None
    """Given: `binary` is a path relative to this folder (the published `is_image_rpath`)."""
    languages: Sequence[LanguageTag] = ()
    """Given: captions in other languages are left out (the published `language_chosen`)."""
    image_key: str = "binary"
    """Field of the image."""
    caption_key: str = "caption"
    """Field of the captions."""

    def parts(self) -> Sequence[Part]:
        """Find the files and cut large ones."""
        parts = []
        for name, path in named_files(self.path, ()).items():
            if path.suffix.lower() in COMPRESSIONS:
                expected = "a file that is not compressed (images are read by position)"
                mistaken(expected, path.name, "Unpack it first.", path)
            for start in range(0, max(path.stat().st_size, 1), PART_BYTES):
                read = partial(self.read, name, path, start)
                parts.append(Part(name=f"{name}@{start}", read=read, stamp=file_stamp(path)))
        return parts

    def read(self, name: str, path: Path, start: int) -> Iterator[LazyRecord]:
        """Yield one record a line, with its place only; a piece of a file has the lines that begin in it."""
        for offset, beginning, size in lines_in(path, start, start + PART_BYTES):
            if size > len(beginning) or beginning.strip():
                place = f"{name}@{offset}"
                make = partial(self.make, path, offset, size, place)
                yield LazyRecord(key=key_of(place), source=self.source, make=make)

    def make(self, path: Path, offset: int, size_bytes: int, place: str) -> ImageTextRecord:
        """Read the line at a position."""
        with data_errors(place):
            if size_bytes > MAX_LINE_BYTES:
                refuse("line_broken", f"a line of at most {MAX_LINE_BYTES >> 20} MiB", f"one of {size_bytes} bytes")
            line = parse_object(load_span(path, offset, size_bytes))
            if isinstance(line, DataError):
                raise line
            return make_record(self._row(line, place))

    def _row(self, line: Row, place: str) -> ImageRow:
        image = self._image(line.get(self.image_key))
        regions = [self._region(element) for element in listed(line.get("elems"), "elems")]
        # The published code takes images without a caption for their regions' texts alone.
        of_regions = (item for region in regions for item in region.captions.items())
        return ImageRow(
            key=key_of(place),
            image=partial(bytes, image),
            captions=self._chosen(line.get(self.caption_key)) or gathered(of_regions),
            source=self.source,
            licence=self.licence,
            # Files hold a line per caption: the same image again must not become its own negative.
            identity=hashlib.sha256(image).hexdigest()[:16],
            ids={"place": place},
            regions=regions,
            where=place,
        )

    def _image(self, value: object) -> bytes:
        if not isinstance(value, str) or not value:
            refuse("image_missing", f'a text in the field "{self.image_key}"', shown(value))
        if self.image_folder is not None:
            return load_first([self.image_folder], value)
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            refuse("base64_broken", "an image in base64", f"{error} in {shown(value, 40)}")

    def _chosen(self, cell: Any) -> Captions:
        found = captions(cell)
        return {tag: texts for tag, texts in found.items() if not self.languages or tag in self.languages}

    def _region(self, cell: Any) -> Region:
        """Return a region; its attributes stay apart, because training decides how they are said."""
        element = mapping(cell, "an element")
        if element.get("caption") is None:
            refuse("line_broken", "an element with a caption", shown(element))
        texts, attributes = (self._chosen(element.get(name)) for name in ("caption", "attributes"))
        return Region(box=box(element.get("bb")), captions=texts, attributes=attributes)


@dataclass(frozen=True, kw_only=True)
class PublishedPairs(PairFiles):
    """Lines with a sentence and its translation. They name no languages, so the recipe does."""

    lang_a: LanguageTag
    """Language of `source_text`; "und" where it is not known."""
    lang_b: LanguageTag
    """Language of `target_text`."""
    key_a: str = "source_text"
    """Field of the sentence."""
    key_b: str = "target_text"
    """Field of its translation."""

    def read(self, name: str, path: Path) -> Pairs:
        """Yield one record a line."""
        return self.records(path, guarded(name, parsed_lines(path, parse_object)), self._pair)

    def _pair(self, source: str, _: str, row: Row) -> Iterator[LazyRecord]:
        text_a, text_b = (text(row.get(key), f'a text in the field "{key}"') for key in (self.key_a, self.key_b))
        yield lazy_pair((self.lang_a, text_a), (self.lang_b, text_b), source)
