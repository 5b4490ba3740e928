"""Random access to a shard set: (shard number, sample number) -> record, by one or two `pread`s and no scan.

Opening a set reads its manifest only. An index is mapped and a tar is opened at the first use of the shard; a
`ShardSet` can be pickled and forked (its open files are its own, and reads carry their offset).
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cclm.errors import DataError
from cclm.shardfile.codec import check_image, decode_block, decode_image_text, pairs_of
from cclm.shardfile.index import ImageEntry, ShardIndex, TextEntry
from cclm.shardfile.manifest import Manifest, ShardInfo
from cclm.types import ImageTextRecord, TextPair, View

MAX_OPEN_SHARDS = 256
"""Kept well under the usual limit of 1024 open files per process."""
MAX_CACHED_BLOCKS = 32
"""Decoded text blocks kept: about 2 MB each at the usual 4,096 pairs."""


class Place(NamedTuple):
    """Where a sample lies."""

    tar: str
    """File name of the tar."""
    offset: int
    """Of the sample's first header (text: of its block's)."""
    key: str
    """The sample's key (text: its group)."""


def _refuse(reason: str, expected: str, got: str, where: str) -> NoReturn:
    do = "Run `python -m shards verify` on the set, and build the shard again."
    raise DataError(reason=reason, expected=expected, got=got, do=do, where=where)


class OpenShard:
    """One shard, open for reading: its index and the tar's file descriptor."""

    def __init__(self, folder: Path, info: ShardInfo, view: View) -> None:
        self.path, self.info = folder / info.name, info
        self.index = ShardIndex(folder / info.index_name, view, info.samples, info.index_sha256)
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            _refuse("tar_missing", "a shard that the manifest names", "no such file", str(self.path))
        except OSError as error:
            _refuse("tar_unreadable", "a shard that can be opened", f"{error.strerror}", str(self.path))

    def where(self, offset: int, key: str) -> str:
        """Return the words that name a place in error messages."""
        return f"{self.path}, offset {offset}, key {key}"

    def read(self, offset: int, size: int, where: str) -> bytes:
        """Return `size` bytes at `offset` (reason tar_truncated when the tar ends before, tar_unreadable)."""
        try:
            data = os.pread(self._descriptor, size, offset) if size >= 0 and offset >= 0 else b""
            while 0 < len(data) < size:  # a read may be cut short by the system, not only by the end of the file
                more = os.pread(self._descriptor, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            _refuse("tar_unreadable", f"{size} bytes at {offset}", f"{error.strerror}", where)
        if len(data) != size:
            _refuse("tar_truncated", f"{size} bytes at {offset}", f"{len(data)}: the tar is cut", where)
        return data

    def image_text(self, entry: ImageEntry) -> ImageTextRecord:
        """Read and decode one image-text sample.

        Raises:
            DataError: reasons of `decode_image_text`; image_format, image_truncated or checksum when bytes changed
                after they were written.
        """
        where = self.where(entry.offset, entry.key)
        image = self.read(entry.image_offset, entry.image_size, where)
        document = self.read(entry.json_offset, entry.json_size, where)
        record = decode_image_text(entry.key, entry.image_format, image, document, where)
        if zlib.crc32(image) != entry.image_crc32:
            check_image(image, entry.image_format, where)  # a more telling word, if there is one
            _refuse("checksum", "the image bytes that were written", "other bytes of the same length", where)
        if zlib.crc32(document) != entry.json_crc32:
            _refuse("checksum", "the JSON bytes that were written", "other bytes of the same length", where)
        return record

    def block(self, entry: TextEntry) -> list[TextPair]:
        """Read and decode the block of a group: all its rows.

        Raises:
            DataError: reasons of `decode_block`; block_broken also when bytes changed after they were written
                (they are not parsed then: a flipped length could make the parser ask for all memory).
        """
        where = self.where(entry.offset, entry.key)
        data = self.read(entry.block_offset, entry.block_size, where)
        if zlib.crc32(data) != entry.block_crc32:
            _refuse("block_broken", "the block that was written", "other bytes of the same length", where)
        return pairs_of(decode_block(data, where))

    def group_of(self, block: Sequence[TextPair], entry: TextEntry) -> list[TextPair]:
        """Return a group's rows of its decoded block (reason rows_wrong)."""
        pairs = list(block[entry.row_start : entry.row_start + entry.num_rows])
        if len(pairs) != entry.num_rows or any(pair.group != entry.group for pair in pairs):
            got = f"{len(pairs)} rows, groups {sorted({pair.group for pair in pairs})[:3]}"
            where = self.where(entry.offset, entry.key)
            _refuse("rows_wrong", f"{entry.num_rows} rows of group {entry.group!r}", got, where)
        return pairs

    def close(self) -> None:
        """Close the tar."""
        os.close(self._descriptor)


class ShardSet:
    """A folder of shards and its manifest.

    Raises:
        DataError: reasons of `Manifest.load`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], Any] = OrderedDict()

    @property
    def view(self) -> View:
        """The set's one view."""
        return self.manifest.view

    @property
    def samples_per_shard(self) -> list[int]:
        """Images, or groups, in each shard."""
        return [shard.samples for shard in self.manifest.shards]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest, "_open": OrderedDict(), "_blocks": OrderedDict()}

    def open_shard(self, shard: int) -> OpenShard:
        """Return a shard, opened (reasons tar_missing, tar_unreadable and those of `ShardIndex`)."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        opened = self._open_new(shard)
        self._open[shard] = opened
        if len(self._open) > MAX_OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        return opened

    def forget(self, shard: int) -> None:
        """Close a shard, if it is open."""
        if (opened := self._open.pop(shard, None)) is not None:
            with contextlib.suppress(OSError):
                opened.close()

    def prefetch(self, shard: int) -> None:
        """Fetch a shard that will be read soon in the background (`RemoteShardSet`; a local one is there)."""

    def _open_new(self, shard: int) -> OpenShard:
        return OpenShard(self.folder, self.manifest.shards[shard], self.view)

    def image_text(self, shard: int, sample: int) -> ImageTextRecord:
        """Return one image-text record (errors: `OpenShard.image_text`)."""
        opened = self.open_shard(shard)
        return opened.image_text(opened.index.image(sample))

    def text_group(self, shard: int, sample: int) -> list[TextPair]:
        """Return the pairs of one group (errors: `OpenShard.block`, `OpenShard.group_of`)."""
        opened = self.open_shard(shard)
        entry = opened.index.text(sample)
        place = (shard, entry.block_offset)
        if place in self._blocks:
            self._blocks.move_to_end(place)
        else:
            self._blocks[place] = opened.block(entry)
            if len(self._blocks) > MAX_CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return opened.group_of(self._blocks[place], entry)

    def read_groups(self, shard: int) -> Iterator[list[TextPair]]:
        """Yield all groups of a shard, each block decoded once (errors: `text_group`, at the block or group)."""
        opened = self.open_shard(shard)
        for first, places in opened.index.blocks():
            block = opened.block(opened.index.text(first))
            for number, (start, count) in enumerate(places):
                pairs = block[start : start + count]
                if len(pairs) != count or pairs[0].group != pairs[-1].group:
                    opened.group_of(block, opened.index.text(first + number))  # says what is wrong
                yield pairs

    def locate(self, shard: int, sample: int) -> Place:
        """Return the tar's name, the offset and the key of a sample: what an error message or a ledger names."""
        opened = self.open_shard(shard)
        if self.view is View.IMAGE_TEXT:
            image = opened.index.image(sample)
            return Place(opened.info.name, image.offset, image.key)
        text = opened.index.text(sample)
        return Place(opened.info.name, text.offset, text.group)

    def close(self) -> None:
        """Close all files; the set can be used again."""
        while self._open:
            self._open.popitem()[1].close()
        self._blocks.clear()
