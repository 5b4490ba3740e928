"""Sets of several shards, written record by record, as no build does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from cclm.shardfile.manifest import ShardInfo
from cclm.shardfile.schema import PAIR_SCHEMA
from cclm.shardfile.writer import ImageTextShardWriter, TextPairShardWriter
from cclm.types import ImageTextRecord, TextPair


def table_of_pairs(pairs: Sequence[TextPair]) -> Any:
    return pa.Table.from_pylist(list(map(vars, pairs)), PAIR_SCHEMA)


class ImageShards:
    """Image shards of `max_samples` records; a context manager."""

    def __init__(self, folder: Path, prefix: str, max_samples: int = 10_000) -> None:
        self._where, self._max_samples = (folder, prefix), max_samples
        self._open: ImageTextShardWriter | None = None
        self.shards: list[ShardInfo] = []

    def __enter__(self) -> ImageShards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, record: ImageTextRecord) -> None:
        if self._open is None:
            self._open = ImageTextShardWriter(*self._where, len(self.shards))
        self._open.add(record)
        if self._open.samples == self._max_samples:
            self.close()

    def close(self) -> list[ShardInfo]:
        if self._open is not None and (info := self._open.close()) is not None:
            self.shards.append(info)
        self._open = None
        return self.shards


def write_groups(
    folder: Path,
    prefix: str,
    groups: Sequence[Sequence[TextPair]],
    pairs_per_block: int = 4096,
    max_samples: int = 1_000_000,
    licences: Mapping[str, str] | None = None,
) -> list[ShardInfo]:
    """Write text shards of `max_samples` groups."""
    shards: list[Any] = []
    for start in range(0, len(groups), max_samples):
        with TextPairShardWriter(
            folder, prefix, len(shards), pairs_per_block=pairs_per_block, licences=licences
        ) as writer:
            writer.add_groups(table_of_pairs(list(chain(*groups[start : start + max_samples]))))
        shards.append(writer.info)
    return shards
