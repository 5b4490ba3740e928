"""Tars of images: plain `webdataset`, with the texts as members beside each image, or with a table beside the tar.

photos/000001.jpg, photos/000001.txt, photos/000001.seg.png   key "photos/000001", suffixes "jpg", "txt", "seg.png"

00000.tar       000000000.jpg, 000000000.json, 000000000.txt, …
00000.parquet   one row a URL: key, url, status, error_message, caption, …; failures have a row and no image

Tables are what img2dataset writes (CC3M, CC12M, LAION, SBU, COYO, DataComp, …), and `python -m shards download`.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from braceexpand import braceexpand

from cclm.annotations.images import key_of
from cclm.errors import DataError
from cclm.rows.cells import identifier, optional, text
from cclm.rows.guard import data_errors, described, guarded, mistaken, refuse
from cclm.rows.lines import COMPRESSIONS
from cclm.rows.tables import Row, parse_json, read_rows
from shards.corpora.files import named_files, note_left_out, note_read, path_list
from shards.corpora.image_corpus import ImageRow, ImageRows, LoadImage, load_span
from shards.corpora.image_tables import ColumnImages
from shards.parts import Part, each

SUCCESS: Final = "success"
_EXTENSIONS: Final = frozenset({"jpg", "jpeg", "png", "webp"})
_IMAGE: Final = "\0image"
"""Where `table_rows` puts what reads a row's image; no column has this name."""
MAX_TEXT_BYTES: Final = 16 << 20
"""A larger member is no text of a sample."""
_NAME: Final = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
"""Key and suffix: the name up to the first dot of its last part, and what follows."""
_ZEROS: Final = bytes(tarfile.BLOCKSIZE)


class Span(NamedTuple):
    """Where a member's bytes lie in its tar."""

    offset: int
    size_bytes: int


class TarSample(NamedTuple):
    """The members of one key."""

    key: str
    members: dict[str, Span]
    """By suffix, in lower case."""
    twice: str
    """A suffix that came again, which `webdataset` refuses; "" when none did."""


def tar_samples(path: Path) -> Iterator[TarSample]:
    """Yield the samples of a tar, reading headers only; one that the tar's end cuts comes without what is cut.

    Members that belong to no sample are passed: folders, links, hidden files, names without a suffix, `__name__`.
    DataError: the tar breaks off, is no tar, or goes on behind its end; after what was sound.
    """
    fault: DataError | None = None
    sample = TarSample("", {}, "")
    try:
        with data_errors(path.name):
            for key, suffix, span in _members(path):
                if key != sample.key:
                    if sample.members:
                        yield sample
                    sample = TarSample(key, {}, "")
                if suffix in sample.members:
                    sample = sample._replace(twice=suffix)
                sample.members[suffix] = span
    except DataError as error:
        fault = error
    if sample.members:
        yield sample
    if fault is not None:
        raise fault


def _members(path: Path) -> Iterator[tuple[str, str, Span]]:
    with tarfile.open(path, "r:") as archive:
        size_bytes = path.stat().st_size
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte for each of them
            span = Span(member.offset_data, member.size)
            if not 0 <= span.size_bytes <= size_bytes - span.offset:
                refuse("file_broken", "a whole tar", f"one that breaks off inside {member.name}", path.name)
            found = _NAME.fullmatch(member.name)
            if member.isreg() and found and not (found[1].startswith("__") and found[1].endswith("__")):
                yield found[1], found[2].lower(), span
        _check_end(path, archive.offset)


def _check_end(path: Path, offset: int) -> None:
    """Refuse a tar without its two blocks of zeros, or with more behind them: `tarfile` would end there in silence."""
    with path.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != _ZEROS:
            got = f"one that breaks off at byte {offset}"
            refuse("file_broken", "a whole tar, which ends in zeros", got, path.name)
        while chunk := file.read(1 << 20):
            if chunk.strip(b"\0"):
                refuse("file_broken", "one tar", "more bytes behind its end: several tars in one file?", path.name)


@dataclass(frozen=True, kw_only=True)
class Webdataset(ColumnImages):
    """One part per tar, one record per key.

    A column is the suffix of a member ("txt", "de.txt", "cls"), or one with the path of a field in its JSON
    ("json.caption", "json.texts.de"). Ids: `key`, and those named.
    """

    path: Path | Sequence[Path]
    """Tars, folders of them, patterns (`*.tar`) or ranges (`shard-{000000..000099}.tar`). Not compressed: images are
    read by position."""
    source: str = "webdataset"
    image: Sequence[str] = ("jpg", "jpeg", "png", "webp")
    """Suffixes of image members; of several in a sample the first of these."""

    def parts(self) -> Sequence[Part]:
        """Find the tars."""
        tars = named_files(expanded(self.path), (".tar",))
        packed = [name for name, tar in tars.items() if tar.suffix.lower() in COMPRESSIONS]
        for name in packed:
            note_left_out(tars.pop(name), "a compressed tar", name)
        if not tars:
            mistaken("a tar that is not compressed", "only compressed ones", "Unpack them to .tar.", str(self.path))
        return self.parts_of_each(tars, self.rows)

    def rows(self, name: str, tar: Path) -> ImageRows:
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
        of_row = self.of_row(self._cells(tar, sample), key=text(sample.key, "a key"))
        image = partial(load_span, tar, *sample.members[suffix])
        yield self.image_row(key=key_of(f"{name}:{sample.key}"), image=image, where=place, **of_row)

    def _cells(self, tar: Path, sample: TarSample) -> Row:
        """Return the cells of the columns that are asked for, as far as the sample has them."""
        read: dict[str, bytes] = {}
        cells: Row = {}
        for column in self.wanted():
            suffix, field = _member_of(column, sample.members)
            if not suffix:
                continue
            if suffix not in read:
                span = sample.members[suffix]
                if span.size_bytes > MAX_TEXT_BYTES:
                    got = f".{suffix} of {span.size_bytes:,}"
                    refuse("line_broken", f"texts of at most {MAX_TEXT_BYTES:,} bytes", got)
                read[suffix] = load_span(tar, *span)
            cells[column] = _cell_of(read[suffix], suffix, field)
        return cells


def expanded(paths: Path | Sequence[Path]) -> list[Path]:
    """Return the paths with their braces written out, as `webdataset` does: "{0..2}.tar" -> 0.tar, 1.tar, 2.tar."""
    found: list[Path] = []
    for path in path_list(paths):
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


def found_tables(paths: Path | Sequence[Path]) -> dict[str, Path]:
    """Return the tables below some paths by name; the tars beside them are read, too."""
    tables = named_files(paths, (".parquet",))
    note_read(table.with_suffix(".tar") for table in tables.values())
    return tables


def tar_spans(path: Path) -> tuple[dict[str, Span], str]:
    """Return key -> place of the images in a tar, and what is wrong with it; only headers are read."""
    spans: dict[str, Span] = {}
    try:
        for sample in tar_samples(path):
            images = [span for suffix, span in sample.members.items() if suffix in _EXTENSIONS]
            spans |= {sample.key.rsplit("/", 1)[-1]: span for span in images}
    except DataError as error:
        return spans, f"{path.name}: {error.got}"
    return spans, ""


def table_rows(name: str, table: Path, needed: Collection[str]) -> Iterator[tuple[str, Row | DataError]]:
    """Yield (place, row) for each row of a table, with what `image_of` wants to know about the tar beside it."""
    tar = table.with_suffix(".tar")
    spans, fault = tar_spans(tar)
    expected, got = "the image of a row with success", fault or "no member of this key"
    for place, row in read_rows(name, table, needed=dict.fromkeys(("key", "status", *needed))):
        if isinstance(row, dict) and row["status"] == SUCCESS:
            span = spans.get(str(row["key"]))
            missing = partial(refuse, "image_missing", expected, got, f"{tar.name} {row['key']}")
            row[_IMAGE] = partial(load_span, tar, *span) if span else missing
        yield place, row


def image_of(row: Row, message: str, do: str) -> LoadImage:
    """Return what reads the image of a row of `table_rows`; one without success is refused with its own status."""
    if _IMAGE not in row:
        refuse(text(row["status"], "a status") or "unexpected", "a downloaded image", message or "no message", do=do)
    image: LoadImage = row[_IMAGE]
    return image


@dataclass(frozen=True, kw_only=True)
class Img2dataset(ColumnImages):
    """One part per tar; every row of the tables becomes a record or, with img2dataset's own message, a refusal.

    Captions: `{text: caption, language: en}`, or what `save_additional_columns` kept. Ids: `key`, and those named.
    """

    folder: Path | Sequence[Path]
    """Holds 00000.tar, 00000.parquet, …"""
    ids: Sequence[str] = ("url",)
    """Columns to keep as ids, beside `key`."""

    def parts(self) -> Sequence[Part]:
        """Find the tables."""
        return self.parts_of_each(found_tables(self.folder), self.rows)

    def rows(self, name: str, table: Path) -> ImageRows:
        """Yield the images of a table and its tar."""
        return each(table_rows(name, table, self.wanted("error_message")), partial(self._row, name), self.source)

    def _row(self, name: str, place: str, row: Row) -> Iterator[ImageRow]:
        again = "Run img2dataset again on the failed rows, or leave them out."
        image = image_of(row, optional(row["error_message"], "a message"), again)
        key = identifier(row["key"])
        yield self.image_row(key=key_of(f"{name}:{key}"), image=image, where=place, **self.of_row(row, key=key))
