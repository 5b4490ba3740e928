"""Random access to a shard set: (shard number, sample number) -> record, by one or two `pread`s and no scan.

Opening a set reads its manifest only. An index is mapped and a tar is opened at the first use of the shard; a
`ShardSet` can be forked (reads carry their offset).
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from cclm.shardfile.manifest import Manifest
from cclm.shardfile.shard import OpenShard
from cclm.types import ImageTextRecord, TextPair, View

Value = TypeVar("Value")

MAX_OPEN_SHARDS = 256
"""Kept well under the usual limit of 1024 open files per process."""
MAX_CACHED_BLOCKS = 32
"""Decoded text blocks kept: about 2 MB each at the usual 4,096 pairs."""


class Memory(Generic[Value]):
    """The most recently used values, up to a total size."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.size = capacity, 0
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable) -> Value | None:
        """Return the value, if it is still here."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: Value, size: int = 1) -> list[Value]:
        """Keep a value that was not there, and forget the oldest ones, which are returned."""
        if size > self.capacity:
            return []
        self._values[key] = value, size
        self.size += size
        forgotten = []
        while self.size > self.capacity:
            forgotten.append(self.pop(next(iter(self._values))))
        return forgotten

    def pop(self, key: Hashable) -> Value:
        """Forget a value (KeyError where it is not here)."""
        value, size = self._values.pop(key)
        self.size -= size
        return value

    def clear(self) -> list[Value]:
        """Forget all values, and return them."""
        return [self.pop(key) for key in list(self._values)]


class Place(NamedTuple):
    """Where a sample lies."""

    tar: str
    """File name of the tar."""
    offset: int
    """Of the sample's first header (text: of its block's)."""
    key: str
    """The sample's key (text: its group)."""


class ShardSet:
    """A folder of shards and its manifest (DataError: reasons of `Manifest.load`)."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self._open = Memory[OpenShard](MAX_OPEN_SHARDS)
        self._blocks = Memory[list[TextPair]](MAX_CACHED_BLOCKS)

    @property
    def view(self) -> View:
        """The set's one view."""
        return self.manifest.view

    @property
    def samples_per_shard(self) -> list[int]:
        """Images, or groups, in each shard."""
        return [shard.samples for shard in self.manifest.shards]

    @property
    def languages(self) -> list[str]:
        """Languages of the set's texts, sorted."""
        return sorted(self.manifest.totals.languages)

    def open_shard(self, shard: int) -> OpenShard:
        """Return a shard, opened (reasons tar_missing, tar_unreadable and those of `ShardIndex`)."""
        opened = self._open.get(shard)
        if opened is None:
            opened = self._open_new(shard)
            for forgotten in self._open.put(shard, opened):
                forgotten.close()
        return opened

    def forget(self, shard: int) -> None:
        """Close a shard, if it is open."""
        if shard in self._open:
            with contextlib.suppress(OSError):
                self._open.pop(shard).close()

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
        block = self._blocks.get(place)
        if block is None:
            block = opened.block(entry)
            self._blocks.put(place, block)
        return opened.group_of(block, entry)

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
        entry = opened.index.image(sample) if self.view is View.IMAGE_TEXT else opened.index.text(sample)
        return Place(opened.info.name, entry.offset, getattr(entry, "group", entry.key))

    def close(self) -> None:
        """Close all files; the set can be used again."""
        for opened in self._open.clear():
            opened.close()
        self._blocks.clear()


def texts_of_sets(folders: Sequence[Path]) -> Iterator[str]:
    """Yield the texts of shard sets in their order, as often as they stand there."""
    return (text for _, _, text in texts_of_things(folders))


def texts_of_things(folders: Sequence[Path]) -> Iterator[tuple[str, str, str]]:
    """Yield (what the text is about, its language, the text): an image's identity or key, a pair's group."""
    for folder in folders:
        shards = ShardSet(folder)
        for shard, samples in enumerate(shards.samples_per_shard):
            if shards.view is View.TEXT_PAIR:
                for pair in (pair for group in shards.read_groups(shard) for pair in group):
                    yield pair.group, pair.lang_a, pair.text_a
                    yield pair.group, pair.lang_b, pair.text_b
            else:
                for sample in range(samples):
                    yield from _texts_of_record(shards.image_text(shard, sample))
        shards.close()


def _texts_of_record(record: ImageTextRecord) -> Iterator[tuple[str, str, str]]:
    of_regions = (texts for region in record.regions for texts in (region.captions, region.attributes))
    for by_language in (record.captions, *of_regions):
        for language, texts in by_language.items():
            yield from ((record.identity or record.key, language, text) for text in texts)
