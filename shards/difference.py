"""What two shard sets differ in, by key: sixteen bytes of memory a sample, whatever the sets' size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from cclm.errors import ConfigError
from cclm.shardfile.reader import ShardSet
from cclm.types import View

MAX_EXAMPLES: Final = 10


def difference(before: Path, after: Path) -> dict[str, Any]:
    """Return what was added, removed and changed between two sets.

    Returns:
        `added`, `removed`, `changed`, `same`: numbers of samples; `examples`: up to MAX_EXAMPLES keys of each of the
        first three, in the order of their set; `counts`: for `languages`, `sources` and `licences`, name -> (before,
        after) where they differ.

    Raises:
        ConfigError: the sets have different views.
        DataError: a set that cannot be read.
    """
    sets = ShardSet(before), ShardSet(after)
    if sets[0].view is not sets[1].view:
        raise ConfigError(
            expected="two sets of one view",
            got=f"{sets[0].view.value} and {sets[1].view.value}",
            do="Compare image sets with image sets, text sets with text sets.",
        )
    (old_keys, old_contents), (new_keys, new_contents) = (_hashes(shards) for shards in sets)
    common, in_old, in_new = np.intersect1d(old_keys, new_keys, assume_unique=True, return_indices=True)
    changed = common[old_contents[in_old] != new_contents[in_new]]
    removed, added = (np.setdiff1d(*keys, assume_unique=True) for keys in ((old_keys, new_keys), (new_keys, old_keys)))
    return {
        "added": len(added),
        "removed": len(removed),
        "changed": len(changed),
        "same": len(common) - len(changed),
        "examples": {
            "added": _examples(sets[1], added),
            "removed": _examples(sets[0], removed),
            "changed": _examples(sets[1], changed),
        },
        "counts": _counts(asdict(sets[0].manifest.totals), asdict(sets[1].manifest.totals)),
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
    """Return the keys of the first of some hashes."""
    wanted = np.sort(hashes)
    found: list[str] = []
    for key in _keys(shards) if len(wanted) else ():
        number = np.uint64(_hash(key.encode("utf-8")))
        place = int(np.searchsorted(wanted, number))
        if place < len(wanted) and wanted[place] == number:
            found.append(key)
            if len(found) == MAX_EXAMPLES:
                break
    return found


def _keys(shards: ShardSet) -> Iterator[str]:
    for shard, samples in enumerate(shards.samples_per_shard):
        for sample in range(samples):
            yield shards.locate(shard, sample).key


def _counts(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, int]]]:
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for field in ("languages", "sources", "licences"):
        names = sorted(before[field].keys() | after[field].keys())
        both = {name: (before[field].get(name, 0), after[field].get(name, 0)) for name in names}
        counts[field] = {name: pair for name, pair in both.items() if pair[0] != pair[1]}
    return counts


def print_difference(result: Mapping[str, Any], console: Console) -> None:
    """Print what `difference` found."""
    for word in ("added", "removed", "changed"):
        keys = ", ".join(result["examples"][word])
        more = ", …" if result[word] > len(result["examples"][word]) else ""
        console.print(f"{word}: {result[word]:,}{f' ({keys}{more})' if keys else ''}", markup=False, highlight=False)
    console.print(f"same: {result['same']:,}", highlight=False)
    for field, counts in result["counts"].items():
        for name, (before, after) in counts.items():
            words = f"{field}: {name} {before:,} -> {after:,} ({after - before:+,})"
            console.print(words, markup=False, highlight=False)
