"""Plain `webdataset` tars: an image and its texts as members of one key, with no table beside them.

shard-000000.tar    000001.jpg, 000001.txt, 000001.json, 000001.cls, 000002.jpg, …
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from braceexpand import braceexpand

from cclm.errors import DataError
from shards.corpora.caption_columns import CaptionColumns
from shards.corpora.cells import identifiers, optional, text
from shards.corpora.files import named_files, note_left_out
from shards.corpora.image_bytes import load_span
from shards.corpora.image_corpus import ImageCorpus
from shards.corpora.image_row import ImageRow, key_of
from shards.corpora.lines import COMPRESSIONS
from shards.corpora.refusal import each, guarded, refuse
from shards.corpora.rows import Row, parse_json
from shards.corpora.tar_samples import TarSample, tar_samples
from shards.guard import described, mistaken
from shards.parts import LazyRecord, Part

MAX_TEXT_BYTES: Final = 16 << 20
"""A larger member is no text of a sample."""


@dataclass(frozen=True, kw_only=True)
class Webdataset(ImageCorpus):
    """One part per tar, one record per key.

    A column is the suffix of a member ("txt", "de.txt", "cls"), or one with the path of a field in its JSON
    ("json.caption", "json.texts.de").
    """

    path: Path | Sequence[Path]
    """Tars, folders of them, patterns (`*.tar`) or ranges (`shard-{000000..000099}.tar`). Not compressed: images are
    read by position."""
    captions: CaptionColumns
    """The columns of captions: `{text: txt, language: en}`, `{text: json.caption, language_column: json.lang}`, …"""
    source: str = "webdataset"
    """The corpus's name."""
    image: Sequence[str] = ("jpg", "jpeg", "png", "webp")
    """Suffixes of image members; of several in a sample the first of these."""
    ids: Sequence[str] = ()
    """Columns to keep as ids, beside `key`."""
    licence_column: str = ""
    """Column of the licence, where samples differ."""

    def parts(self) -> Sequence[Part]:
        """Find the tars."""
        self.captions.columns()
        tars = named_files(expanded(self.path), (".tar",))
        for name, tar in tars.items():
            if tar.suffix.lower() in COMPRESSIONS:
                note_left_out(tar, "a compressed tar", name)
        plain = {name: tar for name, tar in tars.items() if tar.suffix.lower() not in COMPRESSIONS}
        if not plain:
            mistaken("a tar that is not compressed", "only compressed ones", "Unpack them to .tar.", str(self.path))
        return self.parts_of_each(plain, self.rows)

    def rows(self, name: str, tar: Path) -> Iterator[ImageRow | LazyRecord]:
        """Yield the samples of a tar."""
        entries = guarded(name, enumerate(tar_samples(tar), 1))
        # A sample is named by its key in messages, not by its number.
        keyed = ((place if isinstance(item, DataError) else f"{name}:{item.key}", item) for place, item in entries)
        return each(keyed, partial(self._row, name, tar), self.source)

    def _row(self, name: str, tar: Path, place: str, sample: TarSample) -> Iterator[ImageRow]:
        if sample.twice:
            refuse("member_twice", "each member of a sample once", f".{sample.twice} again")
        suffix = next((suffix for suffix in self.image if suffix in sample.members), None)
        if suffix is None:
            there = ", ".join(f".{suffix}" for suffix in sample.members)
            refuse("image_missing", f"an image (.{', .'.join(self.image)})", f"only {there}")
        row = self._cells(tar, sample)
        yield self.image_row(
            key=key_of(f"{name}:{sample.key}"),
            image=partial(load_span, tar, *sample.members[suffix]),
            captions=self.captions.captions_of(row),
            licence=optional(row.get(self.licence_column), "a licence"),
            ids={"key": text(sample.key, "a key")} | identifiers(row, self.ids),
            where=place,
        )

    def _cells(self, tar: Path, sample: TarSample) -> Row:
        """Return the cells of the columns that are asked for, as far as the sample has them."""
        read: dict[str, bytes] = {}
        cells: Row = {}
        for column in filter(None, (*self.captions.columns(), *self.ids, self.licence_column)):
            suffix, field = _member_of(column, sample.members)
            if not suffix:
                continue
            if suffix not in read:
                span = sample.members[suffix]
                if span.size_bytes > MAX_TEXT_BYTES:
                    refuse(
                        "line_broken", f"texts of at most {MAX_TEXT_BYTES:,} bytes", f".{suffix} of {span.size_bytes:,}"
                    )
                read[suffix] = load_span(tar, *span)
            cells[column] = _cell_of(read[suffix], suffix, field)
        return cells


def expanded(paths: Path | Sequence[Path]) -> list[Path]:
    """Return the paths with their braces written out, as `webdataset` does: "{0..2}.tar" -> 0.tar, 1.tar, 2.tar."""
    listed = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    found: list[Path] = []
    for path in listed:
        try:
            found += [path] if path.exists() else map(Path, braceexpand(str(path)))
        except ValueError as error:
            mistaken("a path with as many { as }", str(error), "Correct `path`.", path)
    return found


def _member_of(column: str, members: Mapping[str, Any]) -> tuple[str, str]:
    """Return the member that a column lies in, the longest that fits, and the field inside it ("": the whole)."""
    parts = column.split(".")
    for length in range(len(parts), 0, -1):
        suffix = ".".join(parts[:length]).lower()
        if suffix in members:
            return suffix, ".".join(parts[length:])
    return "", ""


def _cell_of(data: bytes, suffix: str, field: str) -> Any:
    """Return a text, or what JSON holds; None where it has no such field."""
    if not field and not suffix.endswith("json"):
        return text(data, f".{suffix}").strip()
    try:
        value = parse_json(data)
    except (ValueError, RecursionError) as error:
        refuse("json_broken", "JSON in UTF-8", f"in .{suffix}: {described(error)}")
    for name in filter(None, field.split(".")):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
