"""Tars as `webdataset` reads them: members that follow each other with one key are a sample.

photos/000001.jpg, photos/000001.txt, photos/000001.seg.png   key "photos/000001", suffixes "jpg", "txt", "seg.png"
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cclm.errors import DataError
from shards.corpora.refusal import refuse
from shards.guard import data_errors

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
            refuse(
                "file_broken", "a whole tar, which ends in zeros", f"one that breaks off at byte {offset}", path.name
            )
        while chunk := file.read(1 << 20):
            if chunk.strip(b"\0"):
                refuse("file_broken", "one tar", "more bytes behind its end: several tars in one file?", path.name)
