"""A view's shard sets behind its stream: slot of a step → sample, with broken samples replaced by neighbours."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cclm.data.batch import BadSample
from cclm.data.config import ImageTextDataConfig, TextPairDataConfig, ViewConfig
from cclm.data.exposure import source_names
from cclm.data.image import decode_image, prepare
from cclm.data.languages import LanguageMix, LanguageWish, has_language_weights
from cclm.data.region_config import RegionDataConfig
from cclm.data.regions import RegionRow, RegionSample, draw_rows, region_sample
from cclm.data.samples import ImageTextSample, TextPairSample, image_text_sample, text_pair_sample
from cclm.data.seeding import Purpose, keyed_generator, sample_generator
from cclm.data.stream import Address, Stream
from cclm.data.tokens import TextTokenizer
from cclm.errors import ConfigError, DataError
from cclm.shardfile.cache import CacheConfig
from cclm.shardfile.fetch import is_remote
from cclm.shardfile.remote import open_set
from cclm.types import ImageTextRecord, TextPair, View

MAX_REPLACEMENTS = 16
"""How many neighbours of a broken sample are tried; more broken ones in a row are no accident."""

STREAM_BITS = {"image_text": 0, "text_pair": 1 << 63, "regions": 1 << 62}
"""Flipped in the seed of each view's stream: the views must not share their shuffles."""

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
    """What the views share: the sets, the stream, and the policy for broken samples.

    Args:
        config: the view's settings.
        tokenizer: of the run.
        seed: of the run.
        cache: where remote shards are kept; None: the default.
        slots: samples of the stream in a step; None: `config.batch_size`.
    """

    view: View
    """Of the shard sets."""
    name: str
    """Of the view in a batch."""

    def __init__(
        self,
        config: ViewConfig,
        tokenizer: TextTokenizer,
        seed: int,
        cache: CacheConfig | None = None,
        slots: int | None = None,
    ) -> None:
        cache = cache or CacheConfig()
        self.tokenizer, self.seed = tokenizer, seed
        self.batch_size = config.batch_size if slots is None else slots
        self.folders = list(config.shards)
        self.sets = [open_set(folder, cache) for folder in config.shards]
        self._ahead = cache.prefetch_steps if any(is_remote(folder) for folder in config.shards) else 0
        self._announced: dict[int, int] = {}  # by first slot: the steps before this one
        for shard_set in self.sets:
            if shard_set.view is not self.view:
                raise ConfigError(
                    expected=f"a shard set of view {self.view.value}",
                    got=f"one of view {shard_set.view.value}",
                    do=f"Move it to the other view's `shards` ({self.name}.shards names it).",
                    where=str(shard_set.folder),
                )
        groups = config.batch_size // config.negative_group
        self._group, self._rows_per_group = config.negative_group, config.matching_rows // groups
        sizes = [shard_set.samples_per_shard for shard_set in self.sets]
        buckets = config.length_buckets if isinstance(config, TextPairDataConfig) else 1
        seed, lanes, window = seed ^ STREAM_BITS[self.name], config.num_lanes, config.window
        self.stream = Stream(
            sizes, config.weights, seed, lanes, window, self.batch_size, config.mix, buckets, self.lengths
        )
        self.languages = [sorted(shard_set.manifest.totals.languages) for shard_set in self.sets]
        self._languages: LanguageMix | None = None
        if has_language_weights(config.mix):
            self._languages = LanguageMix(config.mix, self.languages, self.stream.dealing)
        self._names = [f"{self.name}/{name}" for name in source_names(self.folders)]
        self._seen: Counter[str] = Counter()

    @property
    def exposure_keys(self) -> list[str]:
        """What `take_exposure` may count."""
        pairs = zip(self._names, self.languages, strict=True)
        return [*self._names, *(f"{name}/{language}" for name, languages in pairs for language in languages)]

    def take_exposure(self) -> list[tuple[str, int]]:
        """What the samples since the last call showed: `cclm.data.exposure`."""
        seen = sorted(self._seen.items())
        self._seen.clear()
        return seen

    def _wish(self, address: Address) -> LanguageWish | None:
        """The language to show, if languages are dealt."""
        if self._languages is None:
            return None
        turn = address.position // self.stream.num_lanes
        return self._languages.wish(address.source, address.lane, turn, address.draw)

    def _count(self, address: Address, sample: Sample) -> None:
        """Count a sample that goes into a batch."""
        name = self._names[address.source]
        self._seen[name] += 1
        for language in getattr(sample, "languages", ()):
            self._seen[f"{name}/{language}"] += 1

    def announce(self, step: int, slots: range) -> None:
        """Let the remote shards of these slots be fetched that will be read some steps after `step`."""
        if not self._ahead:
            return
        stop = step + self._ahead + 1
        if self.stream.end_step is not None:
            stop = min(stop, self.stream.end_step)
        for number in range(max(step, self._announced.get(slots.start, 0)), stop):
            for slot in slots:
                address = self.stream.address(number, slot)
                self.sets[address.source].prefetch(address.shard)
        self._announced[slots.start] = stop

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
                sample = self._make(candidate, fusion)
                self._count(candidate, sample)
                return sample, bad
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

    def lengths(self, source: int, shards: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """A number for each sample that grows with the length of its texts; 0 for broken ones. Only texts have one."""
        return np.zeros(len(shards), dtype=np.int64)

    def _make(self, address: Address, fusion: bool) -> Sample:
        raise NotImplementedError

    def _describe(self, address: Address, error: DataError) -> BadSample:
        shard_set = self.sets[address.source]
        try:
            shard, offset, key = shard_set.locate(address.shard, address.sample)
        except DataError:  # the index itself is broken
            shard, offset, key = shard_set.manifest.shards[address.shard].name, -1, f"#{address.sample}"
        return BadSample(
            view=self.name,
            source=self.folders[address.source],
            shard=shard,
            offset=offset,
            key=key,
            reason=error.reason,
            message=str(error),
        )


class ImageTextSource(Source[ImageTextSample]):
    """Images with captions."""

    view, name = View.IMAGE_TEXT, "image_text"

    def __init__(
        self, config: ImageTextDataConfig, tokenizer: TextTokenizer, seed: int, cache: CacheConfig | None = None
    ) -> None:
        super().__init__(config, tokenizer, seed, cache)
        self.config = config
        self._memory: Memory[tuple[ImageTextRecord, Image.Image]] = Memory(config.transform.cache_bytes)

    def _make(self, address: Address, fusion: bool) -> ImageTextSample:
        record, picture = self._load(address)
        generator = sample_generator(self.seed, self.view, address.epoch, address.position)
        wish = self._wish(address)
        return image_text_sample(record, picture, self.config, self.tokenizer, generator, fusion, wish)

    def _load(self, address: Address) -> tuple[ImageTextRecord, Image.Image | bytes]:
        transform = self.config.transform
        if transform.method == "random_resized_crop" and not transform.cache_bytes:  # decoded when the crop is known
            record = self.sets[address.source].image_text(address.shard, address.sample)
            return record, record.image
        key = (address.source, address.shard, address.sample)
        known = self._memory.get(key)
        if known is not None:
            return known
        record = self.sets[address.source].image_text(address.shard, address.sample)
        picture = prepare(decode_image(record.image), transform)
        record = replace(record, image=b"")
        captions = sum(sys.getsizeof(text) for texts in record.captions.values() for text in texts)
        # Pillow keeps four bytes for each RGB pixel; a kilobyte for the objects around it
        self._memory.put(key, (record, picture), 4 * picture.width * picture.height + captions + 1024)
        return record, picture


class TextPairSource(Source[TextPairSample]):
    """Sentences with translations."""

    view, name = View.TEXT_PAIR, "text_pair"

    def __init__(
        self, config: TextPairDataConfig, tokenizer: TextTokenizer, seed: int, cache: CacheConfig | None = None
    ) -> None:
        super().__init__(config, tokenizer, seed, cache)
        self.config = config
        self._memory: Memory[list[TextPair]] = Memory(config.cache_groups)

    def lengths(self, source: int, shards: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Characters of a group's sentence and of its mean translation, rounded down."""
        found = []
        for shard, sample in zip(shards.tolist(), samples.tolist(), strict=True):
            try:
                pairs = self.sets[source].text_group(shard, sample)
            except DataError:  # it will be met, and told, when it is its turn
                pairs = []
            found.append(sum(len(pair.text_a) + len(pair.text_b) for pair in pairs) // max(1, len(pairs)))
        return np.array(found, dtype=np.int64)

    def _make(self, address: Address, fusion: bool) -> TextPairSample:
        key = (address.source, address.shard, address.sample)
        pairs = self._memory.get(key)
        if pairs is None:
            pairs = self.sets[address.source].text_group(address.shard, address.sample)
            self._memory.put(key, pairs, 1)
        generator = sample_generator(self.seed, self.view, address.epoch, address.position)
        return text_pair_sample(pairs, self.config, self.tokenizer, generator, fusion, self._wish(address))


class RegionSource(Source[RegionSample]):
    """Images with regions; its slots are images, its batches are made of groups of texts."""

    view, name = View.IMAGE_TEXT, "regions"

    def __init__(
        self, config: RegionDataConfig, tokenizer: TextTokenizer, seed: int, cache: CacheConfig | None = None
    ) -> None:
        super().__init__(config, tokenizer, seed, cache, config.images_per_step)
        self.config = config

    @property
    def exposure_keys(self) -> list[str]:
        """By source only: which texts a group takes, and in which languages, is drawn later."""
        return list(self._names)

    def group(self, step: int, number: int) -> tuple[tuple[list[RegionSample], list[RegionRow]], list[BadSample]]:
        """The pictures and the rows of a negative group, and the broken samples that were replaced."""
        samples, bad = [], []
        for slot in range(number * self.config.images_per_group, (number + 1) * self.config.images_per_group):
            sample, broken = self.sample(step, slot)
            samples.append(sample)
            bad += broken
        generator = keyed_generator(self.seed, Purpose.REGION_GROUP, 0, (number, 0, step))
        return (samples, draw_rows(samples, self.config, self.tokenizer, generator)), bad

    def _make(self, address: Address, fusion: bool) -> RegionSample:
        record = self.sets[address.source].image_text(address.shard, address.sample)
        generator = keyed_generator(self.seed, Purpose.REGION_SAMPLE, 0, (0, address.epoch, address.position))
        return region_sample(record, record.image, self.config, self.tokenizer, generator)
