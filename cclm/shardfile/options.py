"""Where shard sets may lie, and how remote ones are kept. Nothing is imported to read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cclm.types import Count, LocalPath, Positive


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where and how remote shards are kept. Changes no result."""

    folder: LocalPath | None = None
    """On a disk of the node; None: $CCLM_SHARD_CACHE, else a folder of your own under $TMPDIR."""
    size_bytes: Positive = 100_000_000_000
    """Most that the cache of a node may hold. More than a rank's lanes need at a time, times the ranks of a node."""
    prefetch_steps: Count = 32
    """How many steps ahead shards are fetched; 0: only when they are needed."""
    attempts: Positive = 5
    """How often a file is tried before the run fails."""


def is_remote(where: Path | str) -> bool:
    """Whether a set is named by a URL that is no local path."""
    return "://" in str(where)
