"""Every text of shard sets, one at a time: captions, what regions are called, both sides of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord, View


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
