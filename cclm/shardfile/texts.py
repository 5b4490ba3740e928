"""Every text of shard sets, one at a time: captions, what regions are called, both sides of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord, View


def texts_of_sets(folders: Sequence[Path]) -> Iterator[str]:
    """Yield the texts of shard sets in their order, as often as they stand there."""
    for folder in folders:
        shards = ShardSet(folder)
        for shard, samples in enumerate(shards.samples_per_shard):
            for sample in range(samples):
                if shards.view is View.IMAGE_TEXT:
                    yield from _texts_of_record(shards.image_text(shard, sample))
                else:
                    for pair in shards.text_group(shard, sample):
                        yield from (pair.text_a, pair.text_b)
        shards.close()


def _texts_of_record(record: ImageTextRecord) -> Iterator[str]:
    for texts in record.captions.values():
        yield from texts
    for region in record.regions:
        for texts in (*region.captions.values(), *region.attributes.values()):
            yield from texts
