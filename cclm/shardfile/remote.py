"""Shard sets by path or URL. A remote one is read like a local one: shards are fetched whole into the node's cache.

open_set("s3://corpus/cc12m")      manifest.json ─► cache/HASH/      (HASH: of the address and the manifest)
open_shard(17)                     index, tar    ─► cache/HASH/      verified by the manifest's hashes
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cclm.errors import DataError
from cclm.files.atomic import replace_bytes
from cclm.shardfile.cache import FileCache, Wanted, fetch
from cclm.shardfile.manifest import ShardInfo
from cclm.shardfile.options import CacheConfig, is_remote
from cclm.shardfile.reader import ShardSet
from cclm.shardfile.schema import MANIFEST_NAME
from cclm.shardfile.shard import OpenShard

_REOPENINGS = 3
_INDEX_BYTES_PER_SAMPLE = 120


def open_set(where: Path | str, cache: CacheConfig | None = None) -> ShardSet:
    """Return the shard set of a folder, a file:// URL, or a URL of another protocol, which is kept in `cache`.

    Raises:
        DataError: reasons of `Manifest.load`.
        FetchError: the manifest cannot be had.
        MissingDependencyError: the protocol needs a package that is not installed.
    """
    local = local_path(where)
    return ShardSet(local) if local is not None else RemoteShardSet(str(where), cache or CacheConfig())


def local_path(where: Path | str) -> Path | None:
    """Return the path of a local set; None for a remote one."""
    text = str(where)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if is_remote(text) else Path(where)


def manifest_bytes(where: Path | str, cache: CacheConfig | None = None) -> bytes:
    """Return the manifest of a local or remote set, as it is stored (OSError, or the errors of `fetch`)."""
    local = local_path(where)
    if local is not None:
        return (local / MANIFEST_NAME).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / MANIFEST_NAME
        fetch(f"{str(where).rstrip('/')}/{MANIFEST_NAME}", target, attempts=(cache or CacheConfig()).attempts)
        return target.read_bytes()


class RemoteShardSet(ShardSet):
    """A shard set at a URL. Opening it fetches its manifest; shards come when they are read, or prefetched."""

    def __init__(self, url: str, config: CacheConfig) -> None:
        self.url, self.cache = url.rstrip("/"), FileCache(config)
        manifest = manifest_bytes(self.url, config)
        name = hashlib.sha256(self.url.encode() + b"\0" + manifest).hexdigest()[:16]
        replace_bytes(self.cache.folder / name / MANIFEST_NAME, manifest)
        self._prefetched: set[int] = set()
        super().__init__(self.cache.folder / name)

    def prefetch(self, shard: int) -> None:
        """Fetch a shard that will be read soon in the background, once."""
        if shard in self._prefetched or shard in self._open:
            return
        self._prefetched.add(shard)
        for wanted in self._files(self.manifest.shards[shard]):
            self.cache.prefetch(wanted)

    def _open_new(self, shard: int) -> OpenShard:
        info = self.manifest.shards[shard]
        for attempt in range(_REOPENINGS):
            for wanted in self._files(info):
                self.cache.get(wanted)
            try:
                opened = super()._open_new(shard)
            except DataError as error:  # evicted between the two: a small cache and many processes
                if error.reason not in ("tar_missing", "index_missing") or attempt + 1 == _REOPENINGS:
                    raise
                continue
            self._prefetched.discard(shard)
            return opened
        raise AssertionError("the last attempt returns or raises")

    def _files(self, info: ShardInfo) -> Iterator[Wanted]:
        index_bytes = info.samples * _INDEX_BYTES_PER_SAMPLE
        for name, size_bytes, sha256 in (
            (info.index_name, index_bytes, info.index_sha256),
            (info.name, info.size_bytes, info.sha256),
        ):
            yield Wanted(url=f"{self.url}/{name}", path=self.folder / name, size_bytes=size_bytes, sha256=sha256)
