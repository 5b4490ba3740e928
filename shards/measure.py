"""What stands in the samples of a set themselves: lengths of texts, sizes of images, in classes that double."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cclm.errors import DataError
from cclm.shardfile.reader import ShardSet
from cclm.types import TextPair, View
from shards.source_image import SourceImage


def spread(samples_per_shard: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield (shard, sample) of at most `most` samples, evenly spread over a set."""
    total = sum(samples_per_shard)
    wanted = min(most, total)
    shard, before = 0, 0
    for number in range(wanted):
        position = total * number // wanted
        while position >= before + samples_per_shard[shard]:
            before += samples_per_shard[shard]
            shard += 1
        yield shard, position - before


def class_of(value: int) -> int:
    """Return the lower bound of the class that a number belongs to: 0, 1, 2, 4, 8, …"""
    return 1 << (value.bit_length() - 1) if value > 0 else 0


def class_name(lower: int) -> str:
    """Return a class in words."""
    return f"{lower}" if lower < 2 else f"{lower:,}-{2 * lower - 1:,}"


def measure_set(folder: Path, most: int) -> dict[str, Any]:
    """Measure at most `most` samples of a set.

    Returns:
        `measured`: how many; `broken`: how many of them could not be read, by reason; `characters`: language -> class
        -> texts; for image sets `short_side`, `file_bytes`, `aspect_percent` (longer by shorter side) and `captions`,
        for text sets `pairs`: class -> samples. Classes are named by their lower bound.
    """
    shards = ShardSet(folder)
    counts: dict[str, Counter[int]] = {}
    characters: dict[str, Counter[int]] = {}
    broken: Counter[str] = Counter()
    measured = 0
    for shard, sample in spread(shards.samples_per_shard, most):
        measured += 1
        try:
            numbers, texts = _look_at(shards, shard, sample)
        except DataError as error:
            broken[error.reason] += 1
            continue
        for name, number in numbers.items():
            counts.setdefault(name, Counter())[class_of(number)] += 1
        for language, text in texts:
            characters.setdefault(language, Counter())[class_of(len(text))] += 1
    shards.close()
    return {
        "measured": measured,
        "broken": dict(sorted(broken.items())),
        "characters": {language: _in_order(count) for language, count in sorted(characters.items())},
        **{name: _in_order(count) for name, count in counts.items()},
    }


def _look_at(shards: ShardSet, shard: int, sample: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a sample's numbers by name, and its texts with their languages."""
    if shards.view is View.TEXT_PAIR:
        pairs = shards.text_group(shard, sample)
        return {"pairs": len(pairs)}, _texts_of(pairs)
    record = shards.image_text(shard, sample)
    shorter, longer = sorted(SourceImage(record.image, f"record {record.key!r}").size)
    texts = [(language, text) for language, of_one in record.captions.items() for text in of_one]
    numbers = {
        "short_side": shorter,
        "aspect_percent": round(100 * longer / max(shorter, 1)),
        "file_bytes": len(record.image),
        "captions": len(texts),
    }
    return numbers, texts


def _texts_of(pairs: list[TextPair]) -> list[tuple[str, str]]:
    return [(pairs[0].lang_a, pairs[0].text_a), *((pair.lang_b, pair.text_b) for pair in pairs)]


def _in_order(count: Counter[int]) -> dict[int, int]:
    return dict(sorted(count.items()))


def median_class(count: dict[int, int]) -> int:
    """Return the class that holds the middle value."""
    middle, seen = sum(count.values()) / 2, 0
    for lower, number in sorted(count.items()):
        seen += number
        if seen >= middle:
            return lower
    raise AssertionError("an empty count")
