"""Re-reads a shard set and names every fault: shard, offset, key, reason.

For each shard: index against its hash, then the tar member by member (header, bytes, checksum, contents, padding),
the counts against the manifest, and at last the tar against its hash, which catches what is left.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from cclm.errors import DataError
from cclm.files.atomic import file_sha256
from cclm.shardfile import schema
from cclm.shardfile.codec import check_group, check_image, check_key
from cclm.shardfile.manifest import Manifest, ShardInfo
from cclm.shardfile.schema import ImageEntry, TextEntry, member_header, padding, trailer
from cclm.shardfile.shard import OpenShard
from cclm.types import TextPair, View

_REBUILD = "Build this shard again from its corpus, or fetch an undamaged copy."


def _fault(reason: str, expected: str, got: str, where: str) -> DataError:
    return DataError(reason=reason, expected=expected, got=got, do=_REBUILD, where=where)


def find_faults(folder: Path | str, on_shard: Callable[[ShardInfo], None] | None = None) -> Iterator[DataError]:
    """Yield every fault of a set, in the order of its shards; `on_shard` is called after each, for a progress bar.

    Reasons, beside those of the manifest, the index, the codec and the reader: index_hash, index_order, tar_size,
    tar_header, tar_padding, tar_hash, counts_wrong, key_twice, tar_unlisted, manifest_hash, quarantine_hash,
    quarantine_missing.
    """
    folder = Path(folder)
    try:
        manifest = Manifest.load(folder)
    except DataError as error:
        yield error
        return
    yield from _loose_faults(folder, manifest)
    keys = SeenKeys()
    for info in manifest.shards:
        yield from _shard_faults(folder, info, manifest.view, keys)
        keys.end_shard()
        if on_shard is not None:
            on_shard(info)
    listed = {info.name for info in manifest.shards}
    for path in sorted(folder.glob(f"*{schema.TAR_SUFFIX}")):
        if path.name not in listed and not path.name.startswith("."):
            yield _fault("tar_unlisted", "only shards that the manifest names", "another tar", str(path))


def _loose_faults(folder: Path, manifest: Manifest) -> Iterator[DataError]:
    """Check the files that no sample depends on: the manifest's own text, and the quarantine."""
    path = folder / schema.MANIFEST_NAME
    text = path.read_bytes()
    # A manifest of before there was a checksum cannot be told from one that has lost it: it is built again.
    if text != manifest.text().encode("utf-8"):
        yield _fault("manifest_hash", "a manifest as it was written", "other bytes", str(path))
    wanted = manifest.config.get(schema.QUARANTINE_HASH)
    quarantine = folder / schema.QUARANTINE_NAME
    if wanted is not None and not quarantine.exists():
        yield _fault("quarantine_missing", "the records that the build refused", "no such file", str(quarantine))
    elif wanted is not None and _sha256(quarantine, "quarantine_unreadable") != wanted:
        yield _fault("quarantine_hash", f"SHA-256 {wanted}", "another one", str(quarantine))
    elif wanted is not None:
        yield from _account_faults(manifest, quarantine)


def _account_faults(manifest: Manifest, quarantine: Path) -> Iterator[DataError]:
    """Check that what a build has read is what stands in the shards and what it has refused, line by line."""
    config = manifest.config
    if not {"records_in", "refused", "captions_refused"} <= config.keys():
        return  # another writer's set
    records = config["records_in"]
    refused, captions = (sum(config[name].values()) for name in ("refused", "captions_refused"))
    written = manifest.totals.rows if manifest.view is View.TEXT_PAIR else manifest.totals.samples
    if written + refused != records:
        got = f"{written:,} written and {refused:,} refused"
        yield _fault("counts_wrong", f"{records:,} records", got, schema.MANIFEST_NAME)
    with quarantine.open("rb") as file:
        num_lines = sum(1 for _ in file)
    if num_lines != refused + captions:
        expected = f"{refused + captions:,} lines of what was refused"
        yield _fault("counts_wrong", expected, f"{num_lines:,}", str(quarantine))


def _shard_faults(folder: Path, info: ShardInfo, view: View, keys: SeenKeys) -> Iterator[DataError]:
    tar, index = folder / info.name, folder / info.index_name
    is_sound = True
    try:
        if index.exists() and _sha256(index, "index_unreadable") != info.index_sha256:
            # Its offsets cannot be trusted, so the members are not looked at: they would be blamed for it.
            yield _fault("index_hash", f"SHA-256 {info.index_sha256}", "another one", str(index))
            return
        with closing(OpenShard(folder, info, view)) as shard:
            for fault in _Walk(shard, view, keys).faults():
                is_sound = False
                yield fault
        if is_sound and _sha256(tar, "tar_unreadable") != info.sha256:
            yield _fault("tar_hash", f"SHA-256 {info.sha256}", "another one", str(tar))
    except DataError as error:
        yield error


def _sha256(path: Path, reason: str) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise _fault(reason, "a file that can be read", str(error.strerror), str(path)) from error


class SeenKeys:
    """Which keys of a set have come before, at eight bytes a key: a hundred million fit into a gigabyte.

    Kept are 64-bit hashes: those of the open shard in a set, the others in a few sorted arrays. Two different keys are
    taken for one with probability n² / 2⁶⁵: three in ten thousand for a hundred million keys.
    """

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._arrays: list[Any] = []

    def add(self, key: str) -> bool:
        """Remember a key; return whether it is new."""
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest, "little")
        if number in self._open or any(_holds(array, number) for array in self._arrays):
            return False
        self._open.add(number)
        return True

    def end_shard(self) -> None:
        """Pack the keys of a shard that is done. Arrays of like size are merged, so there are few."""
        array = np.sort(np.fromiter(self._open, dtype=np.uint64, count=len(self._open)))
        self._open = set()
        while self._arrays and len(self._arrays[-1]) <= 2 * len(array):
            array = np.sort(np.concatenate((self._arrays.pop(), array)))
        self._arrays.append(array)


def _holds(array: Any, number: int) -> bool:
    place = int(array.searchsorted(np.uint64(number)))
    return place < len(array) and int(array[place]) == number


class _Walk:
    """One pass over a shard, member by member, in the order of its index; what ends it is raised."""

    def __init__(self, shard: OpenShard, view: View, keys: SeenKeys) -> None:
        self._shard, self._view, self._keys = shard, view, keys
        self._position = self._rows = 0
        self._languages, self._sources, self._licences = (Counter[str]() for _ in range(3))

    def faults(self) -> Iterator[DataError]:
        info, path, is_sound = self._shard.info, self._shard.path, True
        for fault in self._images() if self._view is View.IMAGE_TEXT else self._blocks():
            is_sound = False
            yield fault
            if fault.reason in ("tar_truncated", "tar_unreadable", "index_order"):
                return  # what follows would only repeat it
        self._expect(self._position, trailer(self._position), "tar_padding", str(path))
        size = path.stat().st_size
        if size != info.size_bytes:
            yield _fault("tar_size", f"{info.size_bytes} bytes", f"{size}", str(path))
        elif is_sound:
            yield from self._count_faults()

    def _images(self) -> Iterator[DataError]:
        for sample in range(len(self._shard.index)):
            entry = self._shard.index.image(sample)
            try:
                self._check_image_sample(entry)
            except DataError as error:
                yield error
            self._position = _end_of(entry.json_offset, entry.json_size)

    def _check_image_sample(self, entry: ImageEntry) -> None:
        where = self._shard.where(entry.offset, entry.key)
        self._check_order(entry.offset, where)
        check_key(entry.key, where)
        self._check_new("key", entry.key, where)
        name, second = f"{entry.key}.{entry.image_format}", _end_of(entry.image_offset, entry.image_size)
        self._check_member(name, entry.offset, entry.image_offset, entry.image_size, where)
        self._check_member(f"{entry.key}.{schema.JSON_EXTENSION}", second, entry.json_offset, entry.json_size, where)
        record = self._shard.image_text(entry)
        check_image(record.image, record.image_format, where)
        self._sources[record.source] += 1
        self._licences[record.licence] += 1
        for language, texts in record.captions.items():
            self._rows += len(texts)
            self._languages[language] += len(texts)

    def _blocks(self) -> Iterator[DataError]:
        """Check each block once, then its groups, which follow each other in the index."""
        block_offset, table = -1, None
        for sample in range(len(self._shard.index)):
            entry = self._shard.index.text(sample)
            where = self._shard.where(entry.offset, entry.key)
            try:
                if entry.block_offset != block_offset:
                    block_offset, table = entry.block_offset, None
                    self._check_order(entry.offset, where)
                    name = f"{entry.key}.{schema.BLOCK_EXTENSION}"
                    self._check_member(name, entry.offset, entry.block_offset, entry.block_size, where)
                    table = self._shard.block(entry)
                if table is not None:
                    self._check_group(table, entry, where)
            except DataError as error:
                yield error
            self._position = _end_of(entry.block_offset, entry.block_size)

    def _check_group(self, block: Sequence[TextPair], entry: TextEntry, where: str) -> None:
        pairs = self._shard.group_of(block, entry)
        check_group(pairs, where)
        self._check_new("group", entry.group, where)
        self._rows += len(pairs)
        self._sources[pairs[0].source] += 1
        self._languages[pairs[0].lang_a] += 1
        self._languages.update(pair.lang_b for pair in pairs)

    def _check_order(self, offset: int, where: str) -> None:
        if offset != self._position:
            raise _fault("index_order", f"the next sample at {self._position}", f"offset {offset}", where)

    def _check_new(self, what: str, key: str, where: str) -> None:
        if not self._keys.add(key):
            raise _fault("key_twice", f"each {what} once in a set", f"{key!r} again", where)

    def _check_member(self, name: str, header_offset: int, offset: int, size: int, where: str) -> None:
        header = member_header(name, size)
        if header_offset + len(header) != offset:
            raise _fault("index_order", f"data of {name} at {header_offset + len(header)}", f"{offset}", where)
        self._expect(header_offset, header, "tar_header", where)
        self._expect(offset + size, padding(size), "tar_padding", where)

    def _expect(self, offset: int, wanted: bytes, reason: str, where: str) -> None:
        if self._shard.read(offset, len(wanted), where) != wanted:
            raise _fault(reason, f"the {len(wanted)} bytes of the format at {offset}", "other bytes", where)

    def _count_faults(self) -> Iterator[DataError]:
        info, where = self._shard.info, str(self._shard.path)
        counted: dict[str, object] = {"rows": self._rows, "languages": self._languages, "sources": self._sources}
        if self._view is View.IMAGE_TEXT:  # a block does not say its licence
            counted["licences"] = self._licences
        for name, number in counted.items():
            claimed = getattr(info, name)
            if claimed != number:
                yield _fault("counts_wrong", f"{name} {claimed}", f"{number}", where)


def _end_of(offset: int, size: int) -> int:
    return offset + size + len(padding(size))
