"""One shard, open for reading: the index beside it says where each sample lies in the tar.

The index is memory-mapped, and a reader touches only its rows.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from cclm.errors import DataError
from cclm.shardfile import schema
from cclm.shardfile.codec import check_image, decode_block, decode_image_text, pairs_of
from cclm.shardfile.manifest import ShardInfo
from cclm.shardfile.schema import ImageEntry, TextEntry
from cclm.types import ImageTextRecord, TextPair, View

SCHEMAS = {View.IMAGE_TEXT: schema.IMAGE_INDEX_SCHEMA, View.TEXT_PAIR: schema.TEXT_INDEX_SCHEMA}


def _refuse(reason: str, expected: str, got: str, where: Path | str) -> NoReturn:
    do = "Run `python -m shards verify` on the set, and build the shard again."
    raise DataError(reason=reason, expected=expected, got=got, do=do, where=str(where))


class ShardIndex:
    """The rows of one index file, in the order of the tar.
    DataError: reasons index_missing, index_unreadable, index_hash, index_broken, index_schema, index_rows."""

    def __init__(self, path: Path, view: View, samples: int, sha256: str) -> None:
        try:
            file = pa.memory_map(str(path))
            # An offset or a key with a flipped bit would look like any other: one pass over the file tells.
            if hashlib.sha256(memoryview(file.read_buffer())).hexdigest() != sha256:
                _refuse("index_hash", f"SHA-256 {sha256}, as the manifest says", "another one", path)
            file.seek(0)
            batches = pa.ipc.open_file(file)
            if batches.num_record_batches != 1:
                raise pa.ArrowInvalid(f"{batches.num_record_batches} record batches, not one")
            table = batches.get_batch(0)
            # Also the string offsets: a flipped byte there would make pyarrow read outside the file.
            table.validate(full=True)
        except FileNotFoundError:
            _refuse("index_missing", "an index beside the shard", "no such file", path)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # the system's own; pyarrow's about the bytes have no number
                _refuse("index_unreadable", "a file that can be read", os.strerror(error.errno), path)
            _refuse("index_broken", "an Arrow IPC file", f"bytes that do not parse ({error})", path)
        if not table.schema.equals(SCHEMAS[view]):
            _refuse("index_schema", f"columns {SCHEMAS[view].names}", f"{table.schema.names}", path)
        if table.num_rows != samples:
            _refuse("index_rows", f"{samples} samples, as the manifest says", f"{table.num_rows} rows", path)
        # Numbers as arrays over the mapped file: an element costs a tenth of what pyarrow's scalars do.
        self._columns = [column if pa.types.is_string(column.type) else column.to_numpy() for column in table.columns]
        self._length = int(table.num_rows)

    def __len__(self) -> int:
        return self._length

    def _row(self, sample: int) -> list[Any]:
        if not 0 <= sample < self._length:
            raise IndexError(f"sample {sample} of a shard with {self._length}")
        return [
            value.as_py() if isinstance(value := column[sample], pa.Scalar) else int(value) for column in self._columns
        ]

    def image(self, sample: int) -> ImageEntry:
        """Return the row of an image-text sample (IndexError when out of range)."""
        return ImageEntry(*self._row(sample))

    def blocks(self) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Yield each block of a text index: its first sample, and (first row, number of rows) of its groups."""
        offsets, starts, counts = (
            self._columns[TextEntry._fields.index(name)] for name in ("block_offset", "row_start", "num_rows")
        )
        edges = {0, *(np.flatnonzero(np.diff(offsets)) + 1).tolist(), self._length}
        for first, stop in pairwise(sorted(edges)):
            yield first, list(zip(starts[first:stop].tolist(), counts[first:stop].tolist(), strict=True))

    def text(self, sample: int) -> TextEntry:
        """Return the row of a group (IndexError when out of range)."""
        return TextEntry(*self._row(sample))


class OpenShard:
    """One shard, open for reading: its index and the tar's file descriptor."""

    def __init__(self, folder: Path, info: ShardInfo, view: View) -> None:
        self.path, self.info = folder / info.name, info
        self.index = ShardIndex(folder / info.index_name, view, info.samples, info.index_sha256)
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            _refuse("tar_missing", "a shard that the manifest names", "no such file", self.path)
        except OSError as error:
            _refuse("tar_unreadable", "a shard that can be opened", f"{error.strerror}", self.path)

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
        """Read and decode a sample (reasons of `decode_image_text`; image_format, image_truncated, checksum)."""
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
        """Read and decode all rows of a group's block (reasons of `decode_block`, also when bytes have changed)."""
        where = self.where(entry.offset, entry.key)
        data = self.read(entry.block_offset, entry.block_size, where)
        if zlib.crc32(data) != entry.block_crc32:  # not parsed: a flipped length may make the parser ask for all memory
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
