"""Shards, written so that a half one can never be seen.

    add(record) -> .NAME.tar.partial grows, hashed as it goes
    close       -> sync tar, write and sync index, rename index, rename tar, sync folder

A shard is visible when its tar is; then its index is there too. Memory holds one sample (or one block of pairs) and
the index rows. The same records give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cclm.files.atomic import publish, replace_bytes, temporary_path
from cclm.shardfile import schema
from cclm.shardfile.codec import encode_block, encode_image_text
from cclm.shardfile.manifest import ShardInfo
from cclm.shardfile.schema import member_header, padding, trailer
from cclm.types import ImageTextRecord

Writer = TypeVar("Writer", bound="_ShardWriter")


class _ShardWriter:
    """What both writers share: tar bytes under a hidden name, index rows in memory."""

    _index_schema: ClassVar[pa.Schema]

    def __init__(self, folder: Path | str, prefix: str, number: int = 0) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{prefix}-{number:06d}"
        self.info: ShardInfo | None = None
        """The shard, after `close`; None: it would be empty, and there is none."""
        self.samples = self.rows = self.size_bytes = 0
        self._languages, self._sources, self._licences = (Counter[str]() for _ in range(3))
        self._index: dict[str, list[Any]] = {column: [] for column in self._index_schema.names}
        self._path = folder / f"{self.name}{schema.TAR_SUFFIX}"
        # Not over a left-over file: whoever still has that one open must not write into this shard.
        temporary_path(self._path).unlink(missing_ok=True)
        self._file = temporary_path(self._path).open("xb")
        self._hash = hashlib.sha256()

    def __enter__(self: Writer) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def close(self) -> ShardInfo | None:
        """Make the shard durable, then visible; return it."""
        if self._file.closed:
            return self.info
        if not self.samples:
            self._abandon()
            return None
        self._write(trailer(self.size_bytes))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        index_sha256 = self._write_index()
        publish(temporary_path(self._path), self._path)
        self.info = ShardInfo(
            name=self._path.name,
            samples=self.samples,
            rows=self.rows,
            size_bytes=self.size_bytes,
            sha256=self._hash.hexdigest(),
            index_sha256=index_sha256,
            languages=dict(sorted(self._languages.items())),
            sources=dict(sorted(self._sources.items())),
            licences=dict(sorted(self._licences.items())),
        )
        return self.info

    def _abandon(self) -> None:
        self._file.close()
        temporary_path(self._path).unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size_bytes += len(data)

    def _add_member(self, name: str, data: bytes) -> int:
        """Append a member; return the offset of its data."""
        self._write(member_header(name, len(data)))
        offset = self.size_bytes
        self._write(data)
        self._write(padding(len(data)))
        return offset

    def _add_index_rows(self, count: int, /, **columns: Any) -> None:
        """Append `count` rows of the index; a column is a list, or one value for all of them."""
        for name, values in self._index.items():
            column = columns[name]
            values.extend(column if isinstance(column, list) else [column] * count)

    def _write_index(self) -> str:
        batch = pa.RecordBatch.from_pydict(self._index, schema=self._index_schema)
        sink = pa.BufferOutputStream()
        # Not compressed: a reader maps the file and touches only the rows it needs.
        with pa.ipc.new_file(sink, self._index_schema, options=pa.ipc.IpcWriteOptions(use_threads=False)) as writer:
            writer.write_batch(batch)
        data = bytes(sink.getvalue())
        replace_bytes(self._path.with_name(f"{self.name}{schema.INDEX_SUFFIX}"), data, durable=True)
        return hashlib.sha256(data).hexdigest()


class ImageTextShardWriter(_ShardWriter):
    """Writes the image-text shard `prefix`-NUMBER.tar into `folder`, which is made if missing; a context manager."""

    _index_schema = schema.IMAGE_INDEX_SCHEMA

    def add(self, record: ImageTextRecord) -> None:
        """Append a record. A record that is refused leaves no trace in the shard (reasons: encode_image_text)."""
        (image_format, image), (_, document) = encode_image_text(record)
        start = self.size_bytes
        image_offset = self._add_member(f"{record.key}.{image_format}", image)
        json_offset = self._add_member(f"{record.key}.{schema.JSON_EXTENSION}", document)
        self._add_index_rows(
            1,
            key=record.key,
            offset=start,
            image_format=image_format,
            image_offset=image_offset,
            image_size=len(image),
            image_crc32=zlib.crc32(image),
            json_offset=json_offset,
            json_size=len(document),
            json_crc32=zlib.crc32(document),
        )
        self.samples += 1
        self._sources[record.source] += 1
        self._licences[record.licence] += 1
        for language, texts in record.captions.items():
            self.rows += len(texts)
            self._languages[language] += len(texts)


class TextPairShardWriter(_ShardWriter):
    """Writes a text shard: blocks of about `pairs_per_block` pairs, a group never split; a context manager.

    The shard is called `prefix`-NUMBER, its blocks `prefix`-NUMBER-BLOCK. `licences` are by source, for the
    statistics; a source that is not named counts as "unknown".
    """

    _index_schema = schema.TEXT_INDEX_SCHEMA

    def __init__(
        self,
        folder: Path | str,
        prefix: str,
        number: int = 0,
        *,
        pairs_per_block: int = 4096,
        licences: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, prefix, number)
        self._pairs_per_block, self._licence_of = pairs_per_block, dict(licences or {})
        self._num_blocks = 0

    def add_groups(self, table: pa.Table) -> None:
        """Append whole groups, one behind the other, in the columns of PAIR_SCHEMA; nothing is checked."""
        starts = np.append(starts_of_groups(table["group"]), table.num_rows)
        first = 0
        while first < len(starts) - 1:
            row = int(starts[first])
            last = min(int(np.searchsorted(starts, row + self._pairs_per_block)), len(starts) - 1)
            self._add_block(table.slice(row, int(starts[last]) - row), starts[first:last] - row)
            first = last

    def _add_block(self, table: pa.Table, starts: NDArray[np.int64]) -> None:
        key = f"{self.name}-{self._num_blocks:05d}"
        block = encode_block(table)
        start = self.size_bytes
        offset = self._add_member(f"{key}.{schema.BLOCK_EXTENSION}", block)
        heads = table.take(pa.array(starts))
        self._add_index_rows(
            len(starts),
            key=key,
            offset=start,
            block_offset=offset,
            block_size=len(block),
            block_crc32=zlib.crc32(block),
            row_start=starts.tolist(),
            num_rows=np.diff(np.append(starts, table.num_rows)).tolist(),
            group=heads["group"].to_pylist(),
        )
        self._num_blocks += 1
        self.samples += len(starts)
        self.rows += table.num_rows
        self._languages.update(_counts(heads["lang_a"]))
        self._languages.update(_counts(table["lang_b"]))
        for source, number in _counts(heads["source"]).items():
            self._sources[source] += number
            self._licences[self._licence_of.get(source, "unknown")] += number


def starts_of_groups(column: Any) -> NDArray[np.int64]:
    """Return the rows at which another value of a column begins."""
    values = column.combine_chunks()
    changes = pc.not_equal(values.slice(1), values.slice(0, max(len(values) - 1, 0))).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.concatenate([np.ones(min(len(values), 1), bool), changes]))


def _counts(column: Any) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}
