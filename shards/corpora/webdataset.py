"""Plain `webdataset` tars: an image and its texts as members that follow each other with one key; no table beside them.

photos/000001.jpg, photos/000001.txt, photos/000001.seg.png   key "photos/000001", suffixes "jpg", "txt", "seg.png"
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from braceexpand import braceexpand

from cclm.errors import DataError
from shards.corpora.cells import text
from shards.corpora.columns import ColumnImages
from shards.corpora.entries import each, guarded, refuse
from shards.corpora.files import named_files, note_left_out
from shards.corpora.image_bytes import load_span
from shards.corpora.image_corpus import ImageRow, ImageRows, key_of
from shards.corpora.lines import COMPRESSIONS
from shards.corpora.rows import Row, parse_json
from shards.guard import data_errors, described, mistaken
from shards.parts import Part

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

    Raises:
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
