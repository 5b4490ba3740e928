"""The index beside a shard: where each sample lies in the tar. Memory-mapped; a reader touches only its rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa

from cclm.errors import DataError
from cclm.shardfile import schema
from cclm.types import View

SCHEMAS = {View.IMAGE_TEXT: schema.IMAGE_INDEX_SCHEMA, View.TEXT_PAIR: schema.TEXT_INDEX_SCHEMA}


class ImageEntry(NamedTuple):
    """One row of an image-text index (columns: IMAGE_INDEX_SCHEMA)."""

    key: str
    offset: int
    image_format: str
    image_offset: int
    image_size: int
    image_crc32: int
    json_offset: int
    json_size: int
    json_crc32: int


class TextEntry(NamedTuple):
    """One row of a text index (columns: TEXT_INDEX_SCHEMA)."""

    key: str
    offset: int
    block_offset: int
    block_size: int
    block_crc32: int
    row_start: int
    num_rows: int
    group: str


def _refuse(reason: str, expected: str, got: str, path: Path) -> NoReturn:
    do = "Run `python -m shards verify` on the set, and build the shard again."
    raise DataError(reason=reason, expected=expected, got=got, do=do, where=str(path))


class ShardIndex:
    """The rows of one index file, in the order of the tar.

    Raises (when made):
        DataError: reasons index_missing, index_unreadable, index_hash, index_broken, index_schema, index_rows (another
            number than `samples`).
    """

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
        names = TextEntry._fields
        offsets, starts, counts = (
            self._columns[names.index(name)].tolist() for name in ("block_offset", "row_start", "num_rows")
        )
        first = 0
        while first < self._length:
            stop = first
            while stop < self._length and offsets[stop] == offsets[first]:
                stop += 1
            yield first, list(zip(starts[first:stop], counts[first:stop], strict=True))
            first = stop

    def text(self, sample: int) -> TextEntry:
        """Return the row of a group (IndexError when out of range)."""
        return TextEntry(*self._row(sample))
