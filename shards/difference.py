"""What two shard sets differ in, by key: sixteen bytes of memory a sample, whatever the sets' size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from cclm.files.text import visible
from cclm.rows.guard import mistaken
from cclm.shardfile.reader import ShardSet
from cclm.types import View
from shards.stats import COUNTS

MAX_EXAMPLES: Final = 10


def difference(before: Path, after: Path) -> dict[str, Any]:
    """Return what was added, removed and changed between two sets.

    `added`, `removed`, `changed`, `same`: numbers of samples; `examples`: up to MAX_EXAMPLES keys of each of the first
    three, in the order of their set; `counts`: for `languages`, `sources` and `licences`, name -> (before, after) where
    they differ. ConfigError: the sets have different views. DataError: a set that cannot be read.
    """
    old, new = ShardSet(before), ShardSet(after)
    if old.view is not new.view:
        do = "Compare image sets with image sets, text sets with text sets."
        mistaken("two sets of one view", f"{old.view.value} and {new.view.value}", do)
    (old_keys, old_contents), (new_keys, new_contents) = _hashes(old), _hashes(new)
    common, in_old, in_new = np.intersect1d(old_keys, new_keys, assume_unique=True, return_indices=True)
    found = {
        "added": (new, np.setdiff1d(new_keys, old_keys, assume_unique=True)),
        "removed": (old, np.setdiff1d(old_keys, new_keys, assume_unique=True)),
        "changed": (new, common[old_contents[in_old] != new_contents[in_new]]),
    }
    return {
        **{word: len(keys) for word, (_, keys) in found.items()},
        "same": len(common) - len(found["changed"][1]),
        "examples": {word: _examples(shards, keys) for word, (shards, keys) in found.items()},
        "counts": _counts(asdict(old.manifest.totals), asdict(new.manifest.totals)),
    }


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _samples(shards: ShardSet) -> Iterator[tuple[str, bytes]]:
    """Yield each sample's key and what stands for its content: checksums where the index has them (images)."""
    for shard, samples in enumerate(shards.samples_per_shard):
        index = shards.open_shard(shard).index
        for sample in range(samples):
            if shards.view is View.IMAGE_TEXT:
                entry = index.image(sample)
                numbers = (entry.image_size, entry.image_crc32, entry.json_size, entry.json_crc32)
                yield entry.key, repr((entry.image_format, *numbers)).encode()
            else:
                pairs = shards.text_group(shard, sample)
                yield pairs[0].group, repr(pairs).encode("utf-8", "surrogatepass")


def _hashes(shards: ShardSet) -> tuple[Any, Any]:
    total = sum(shards.samples_per_shard)
    keys, contents = np.empty(total, dtype=np.uint64), np.empty(total, dtype=np.uint64)
    for number, (key, content) in enumerate(_samples(shards)):
        keys[number], contents[number] = _hash(key.encode("utf-8")), _hash(content)
    return keys, contents


def _examples(shards: ShardSet, hashes: Any) -> list[str]:
    wanted = np.sort(hashes)
    found: list[str] = []
    for shard, samples in enumerate(shards.samples_per_shard):
        for sample in range(samples):
            if len(found) == min(MAX_EXAMPLES, len(wanted)):
                return found
            key = shards.locate(shard, sample).key
            number = np.uint64(_hash(key.encode("utf-8")))
            if number in wanted[np.searchsorted(wanted, number) :][:1]:
                found.append(key)
    return found


def _counts(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, int]]]:
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for field in COUNTS:
        names = sorted(before[field].keys() | after[field].keys())
        both = {name: (before[field].get(name, 0), after[field].get(name, 0)) for name in names}
        counts[field] = {name: pair for name, pair in both.items() if pair[0] != pair[1]}
    return counts


def print_difference(result: Mapping[str, Any], console: Console) -> None:
    """Print what `difference` found."""
    for word in ("added", "removed", "changed"):
        keys = ", ".join(map(visible, result["examples"][word]))
        more = ", …" if result[word] > len(result["examples"][word]) else ""
        console.out(f"{word}: {result[word]:,}" + (f" ({keys}{more})" if keys else ""))
    console.out(f"same: {result['same']:,}")
    for field, counts in result["counts"].items():
        for name, (before, after) in counts.items():
            console.out(f"{field}: {visible(name)} {before:,} -> {after:,} ({after - before:+,})")
