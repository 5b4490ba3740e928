"""A view's shard sets behind its stream: slot of a step → sample, with broken samples replaced by neighbours."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from typing import Generic, TypeVar

from PIL import Image

from cclm.data.batch import BadSample
from cclm.data.config import ImageTextDataConfig, TextPairDataConfig
from cclm.data.image import decode_image, prepare
from cclm.data.samples import ImageTextSample, TextPairSample, image_text_sample, text_pair_sample
from cclm.data.seeding import sample_generator
from cclm.data.stream import Address, Stream
from cclm.data.tokens import TextTokenizer
from cclm.errors import ConfigError, DataError
from cclm.shardfile.reader import ShardSet
from cclm.types import ImageTextRecord, TextPair, View

MAX_REPLACEMENTS = 16
"""How many neighbours of a broken sample are tried; more broken ones in a row are no accident."""

Value = TypeVar("Value")
Sample = TypeVar("Sample")


class Memory(Generic[Value]):
    """The most recently used values, up to a total size."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.size = capacity, 0
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        """The value, if it is still here."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Keep a value that was not there, and forget the oldest ones."""
        if size > self.capacity:
            return
        self._values[key] = value, size
        self.size += size
        while self.size > self.capacity:
            self.size -= self._values.popitem(last=False)[1][1]


class Source(Generic[Sample]):
    """What both views share: the sets, the stream, and the policy for broken samples."""

    view: View

    def __init__(self, config: ImageTextDataConfig | TextPairDataConfig, tokenizer: TextTokenizer, seed: int) -> None:
        self.tokenizer, self.seed = tokenizer, seed
        self.batch_size = config.batch_size
        self.folders = list(config.shards)
        self.sets = [ShardSet(folder) for folder in config.shards]
        for shard_set in self.sets:
            if shard_set.view is not self.view:
                raise ConfigError(
                    expected=f"a shard set of view {self.view.value}",
                    got=f"one of view {shard_set.view.value}",
                    do=f"Move it to the other view's `shards` ({self.view.value}.shards names it).",
                    where=str(shard_set.folder),
                )
        groups = config.batch_size // config.negative_group
        self._group, self._rows_per_group = config.negative_group, config.matching_rows // groups
        sizes = [shard_set.samples_per_shard for shard_set in self.sets]
        # the two views' streams must not share their shuffles: bit 63 tells them apart
        stream_seed = seed ^ (1 << 63) if self.view is View.TEXT_PAIR else seed
        lanes, window = config.num_lanes, config.window
        self.stream = Stream(sizes, config.weights, stream_seed, lanes, window, self.batch_size, config.mix)

    def sample(self, step: int, slot: int) -> tuple[Sample, list[BadSample]]:
        """The sample of a slot, and the broken ones that it stands in for.

        Raises:
            DataError: `neighbourhood_broken`, if no replacement can be found near by.
        """
        address = self.stream.address(step, slot)
        fusion = slot % self._group < self._rows_per_group
        bad: list[BadSample] = []
        candidate: Address | None = address
        while candidate is not None and len(bad) <= MAX_REPLACEMENTS:
            try:
                return self._make(candidate, fusion), bad
            except DataError as error:
                bad.append(self._describe(candidate, error))
            candidate = self.stream.replacement(address, len(bad))
        raise DataError(
            reason="neighbourhood_broken",
            expected="a usable sample among the neighbours of a broken one",
            got=f"{len(bad)} broken ones, the last: {bad[-1].message}",
            do="Verify this shard set (`python -m shards verify`) and build it again.",
            where=f"{bad[-1].source}/{bad[-1].shard}",
        )

    def _make(self, address: Address, fusion: bool) -> Sample:
        raise NotImplementedError

    def _describe(self, address: Address, error: DataError) -> BadSample:
        shard_set = self.sets[address.source]
        try:
            shard, offset, key = shard_set.locate(address.shard, address.sample)
        except DataError:  # the index itself is broken
            shard, offset, key = shard_set.manifest.shards[address.shard].name, -1, f"#{address.sample}"
        return BadSample(
            view=self.view.value,
            source=self.folders[address.source],
            shard=shard,
            offset=offset,
            key=key,
            reason=error.reason,
            message=str(error),
        )


class ImageTextSource(Source[ImageTextSample]):
    """Images with captions."""

    view = View.IMAGE_TEXT

    def __init__(self, config: ImageTextDataConfig, tokenizer: TextTokenizer, seed: int) -> None:
        super().__init__(config, tokenizer, seed)
        self.config = config
        self._memory: Memory[tuple[ImageTextRecord, Image.Image]] = Memory(config.transform.cache_bytes)

    def _make(self, address: Address, fusion: bool) -> ImageTextSample:
        record, picture = self._load(address)
        generator = sample_generator(self.seed, self.view, address.epoch, address.position)
        return image_text_sample(record, picture, self.config, self.tokenizer, generator, fusion)

    def _load(self, address: Address) -> tuple[ImageTextRecord, Image.Image]:
        key = (address.source, address.shard, address.sample)
        known = self._memory.get(key)
        if known is not None:
            return known
        record = self.sets[address.source].image_text(address.shard, address.sample)
        picture = prepare(decode_image(record.image), self.config.transform)
        record = replace(record, image=b"")
        captions = sum(sys.getsizeof(text) for texts in record.captions.values() for text in texts)
        # Pillow keeps four bytes for each RGB pixel; a kilobyte for the objects around it
        self._memory.put(key, (record, picture), 4 * picture.width * picture.height + captions + 1024)
        return record, picture


class TextPairSource(Source[TextPairSample]):
    """Sentences with translations."""

    view = View.TEXT_PAIR

    def __init__(self, config: TextPairDataConfig, tokenizer: TextTokenizer, seed: int) -> None:
        super().__init__(config, tokenizer, seed)
        self.config = config
        self._memory: Memory[list[TextPair]] = Memory(config.cache_groups)

    def _make(self, address: Address, fusion: bool) -> TextPairSample:
        key = (address.source, address.shard, address.sample)
        pairs = self._memory.get(key)
        if pairs is None:
            pairs = self.sets[address.source].text_group(address.shard, address.sample)
            self._memory.put(key, pairs, 1)
        generator = sample_generator(self.seed, self.view, address.epoch, address.position)
        return text_pair_sample(pairs, self.config, self.tokenizer, generator, fusion)
