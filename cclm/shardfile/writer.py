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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cclm.files.atomic import publish, replace_bytes, temporary_path
from cclm.shardfile import schema
from cclm.shardfile.codec import check_group, encode_block, encode_image_text, table_of_pairs
from cclm.shardfile.manifest import ShardInfo
from cclm.shardfile.schema import member_header, padding, trailer
from cclm.types import ImageTextRecord, TextPair


class _OpenShard:
    """One growing shard: tar bytes under a hidden name, index rows in memory."""

    def __init__(self, folder: Path, name: str, index_schema: Any) -> None:
        self.name, self.samples, self.rows = name, 0, 0
        self.languages: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.licences: Counter[str] = Counter()
        self._folder, self._schema = folder, index_schema
        self._index: dict[str, list[Any]] = {column: [] for column in index_schema.names}
        self._path = folder / f"{name}{schema.TAR_SUFFIX}"
        # Not over a left-over file: whoever still has that one open must not write into this shard.
        temporary_path(self._path).unlink(missing_ok=True)
        self._file = temporary_path(self._path).open("xb")
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size_bytes += len(data)

    def add_member(self, name: str, data: bytes) -> int:
        """Append a member; return the offset of its data."""
        self._write(member_header(name, len(data)))
        offset = self.size_bytes
        self._write(data)
        self._write(padding(len(data)))
        return offset

    def add_index_rows(self, count: int, /, **columns: Any) -> None:
        """Append `count` rows of the index; a column is a list, or one value for all of them."""
        for name, values in self._index.items():
            column = columns[name]
            values.extend(column if isinstance(column, list) else [column] * count)

    def finish(self) -> ShardInfo:
        """Make the shard durable, then visible."""
        self._write(trailer(self.size_bytes))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        index_sha256 = self._write_index()
        publish(temporary_path(self._path), self._path)
        return ShardInfo(
            name=self._path.name,
            samples=self.samples,
            rows=self.rows,
            size_bytes=self.size_bytes,
            sha256=self._hash.hexdigest(),
            index_sha256=index_sha256,
            languages=dict(sorted(self.languages.items())),
            sources=dict(sorted(self.sources.items())),
            licences=dict(sorted(self.licences.items())),
        )

    def _write_index(self) -> str:
        columns = [pa.array(self._index[field.name], type=field.type) for field in self._schema]
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        sink = pa.BufferOutputStream()
        # Not compressed: a reader maps the file and touches only the rows it needs.
        with pa.ipc.new_file(sink, self._schema, options=pa.ipc.IpcWriteOptions(use_threads=False)) as writer:
            writer.write_batch(batch)
        data = bytes(sink.getvalue())
        replace_bytes(self._folder / f"{self.name}{schema.INDEX_SUFFIX}", data, durable=True)
        return hashlib.sha256(data).hexdigest()

    def abandon(self) -> None:
        """Remove what was written."""
        self._file.close()
        temporary_path(self._path).unlink(missing_ok=True)


class _ShardWriter:
    """What both writers share: shards are opened when a sample comes and closed when they are full."""

    _index_schema: Any

    def __init__(
        self, folder: Path, prefix: str, *, max_samples: int | None, max_bytes: int | None, first_shard: int
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._prefix, self._next_shard = folder, prefix, first_shard
        self._max_samples, self._max_bytes = max_samples, max_bytes
        self._shard: _OpenShard | None = None
        self.shards: list[ShardInfo] = []
        """The finished shards, in order; complete after `close`."""

    def _open_shard(self) -> _OpenShard:
        if self._shard is None:
            name = f"{self._prefix}-{self._next_shard:06d}"
            self._shard = _OpenShard(self._folder, name, self._index_schema)
            self._next_shard += 1
        return self._shard

    def _is_full(self, next_bytes: int) -> bool:
        """Tell whether the open shard must be closed before a sample of about `next_bytes` is added."""
        shard = self._shard
        if shard is None or shard.samples == 0:
            return False
        too_many = self._max_samples is not None and shard.samples >= self._max_samples
        return too_many or (self._max_bytes is not None and shard.size_bytes + next_bytes > self._max_bytes)

    def _finish_shard(self) -> None:
        if self._shard is not None:
            self.shards.append(self._shard.finish())
            self._shard = None

    def close(self) -> list[ShardInfo]:
        """Finish the last shard and return all of them."""
        self._finish_shard()
        return self.shards

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._shard is not None:
            self._shard.abandon()
            self._shard = None


class ImageTextShardWriter(_ShardWriter):
    """Writes image-text shards `prefix`-000000.tar, … into `folder`; a context manager.

    Args:
        folder: is made if missing.
        prefix: the shards' name.
        max_samples: images per shard at most; None: no limit.
        max_bytes: tar size at which a shard is closed (one sample may exceed it); None: no limit.
        first_shard: number of the first shard, so that several processes can write one set.
    """

    _index_schema = schema.IMAGE_INDEX_SCHEMA

    def __init__(
        self,
        folder: Path | str,
        prefix: str,
        max_samples: int | None = 10_000,
        max_bytes: int | None = 1 << 30,
        *,
        first_shard: int = 0,
    ) -> None:
        super().__init__(Path(folder), prefix, max_samples=max_samples, max_bytes=max_bytes, first_shard=first_shard)

    def __enter__(self) -> ImageTextShardWriter:
        return self

    def add(self, record: ImageTextRecord) -> None:
        """Append a record. A record that is refused leaves no trace in the shard (reasons: encode_image_text)."""
        members = encode_image_text(record)
        if self._is_full(sum(len(data) for _, data in members) + 2048):
            self._finish_shard()
        shard = self._open_shard()
        (image_format, image), (_, document) = members
        start = shard.size_bytes
        image_offset = shard.add_member(f"{record.key}.{image_format}", image)
        json_offset = shard.add_member(f"{record.key}.{schema.JSON_EXTENSION}", document)
        shard.add_index_rows(
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
        shard.samples += 1
        shard.sources[record.source] += 1
        shard.licences[record.licence] += 1
        for language, texts in record.captions.items():
            shard.rows += len(texts)
            shard.languages[language] += len(texts)


class TextPairShardWriter(_ShardWriter):
    """Writes text shards: blocks of about `pairs_per_block` pairs, a group never split; a context manager.

    Args:
        folder: is made if missing.
        prefix: the shards' name; blocks are called `prefix`-SHARD-BLOCK.
        pairs_per_block: a block is closed when it holds this many pairs.
        max_samples: groups per shard at most; None: no limit.
        max_bytes: tar size at which a shard is closed, checked between blocks; None: no limit.
        first_shard: number of the first shard.
        licences: licence by source, for the statistics; a source that is not named counts as "unknown".
    """

    _index_schema = schema.TEXT_INDEX_SCHEMA

    def __init__(
        self,
        folder: Path | str,
        prefix: str,
        pairs_per_block: int = 4096,
        max_samples: int | None = 1_000_000,
        max_bytes: int | None = 1 << 30,
        *,
        first_shard: int = 0,
        licences: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(Path(folder), prefix, max_samples=max_samples, max_bytes=max_bytes, first_shard=first_shard)
        self._pairs_per_block, self._licence_of = pairs_per_block, dict(licences or {})
        self._pairs: list[TextPair] = []
        self._num_groups = 0
        """Groups that are complete in `_pairs`, the block that grows."""
        self._num_blocks = 0

    def __enter__(self) -> TextPairShardWriter:
        return self

    def add_group(self, pairs: Sequence[TextPair]) -> None:
        """Append the pairs of one group (reasons: check_group)."""
        check_group(pairs)
        self._pairs.extend(pairs)
        self._num_groups += 1
        if len(self._pairs) >= self._pairs_per_block or self._num_groups == self._room():
            self._finish_block()

    def add_groups(self, table: Any) -> None:
        """Append many groups at once, at a tenth of the cost; blocks end with the table.

        Args:
            table: whole groups, one behind the other, in the columns of PAIR_SCHEMA; nothing is checked.
        """
        self._finish_block()
        starts = np.append(starts_of_groups(table["group"]), table.num_rows)
        first = 0
        while first < len(starts) - 1:
            room = self._room()
            last = int(np.searchsorted(starts, starts[first] + self._pairs_per_block))
            last = min(last, len(starts) - 1, last if room is None else first + room)
            row = int(starts[first])
            self._add_block(table.slice(row, int(starts[last]) - row), starts[first:last] - row)
            first = last

    def _room(self) -> int | None:
        """Return how many groups the next block may hold, which may be one of a new shard; None: any number."""
        if self._max_samples is None:
            return None
        if self._shard is None or self._is_full(0):
            return self._max_samples
        return self._max_samples - self._shard.samples

    def _add_block(self, table: Any, starts: NDArray[np.int64]) -> None:
        """Append a block."""
        if self._is_full(0):
            self._finish_shard()
            self._num_blocks = 0
        shard = self._open_shard()
        key = f"{shard.name}-{self._num_blocks:05d}"
        block = encode_block(table)
        start = shard.size_bytes
        offset = shard.add_member(f"{key}.{schema.BLOCK_EXTENSION}", block)
        heads = table.take(pa.array(starts))
        shard.add_index_rows(
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
        shard.samples += len(starts)
        shard.rows += table.num_rows
        shard.languages.update(_counts(heads["lang_a"]))
        shard.languages.update(_counts(table["lang_b"]))
        for source, number in _counts(heads["source"]).items():
            shard.sources[source] += number
            shard.licences[self._licence_of.get(source, "unknown")] += number
        self._num_blocks += 1

    def _finish_block(self) -> None:
        pairs, self._pairs, self._num_groups = self._pairs, [], 0
        if pairs:
            self.add_groups(table_of_pairs(pairs))

    def close(self) -> list[ShardInfo]:
        """Write the last block, finish the last shard and return all of them."""
        self._finish_block()
        return super().close()


def starts_of_groups(column: Any) -> NDArray[np.int64]:
    """Return the rows at which another value of a column begins."""
    values = column.combine_chunks()
    changes = pc.not_equal(values.slice(1), values.slice(0, max(len(values) - 1, 0))).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.concatenate([np.ones(min(len(values), 1), bool), changes]))


def _counts(column: Any) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}
