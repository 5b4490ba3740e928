"""The image-text view: images with captions.

| first side, the memory | second side, the query | masked text | memory of the masked text |
|---|---|---|---|
| image | caption | caption | image |
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cclm.data.batch import BadSample, PixelScale, Tokens
from cclm.data.collate import FusionDraws, fusion_draws, int64, pad, row_tensors
from cclm.data.decoding import decode_image
from cclm.data.image import prepare, training_pixels
from cclm.data.ledger import identity_hash, sample_hash, text_hash
from cclm.data.mix_plan import RequestedLanguage
from cclm.data.source import Keys, Source
from cclm.data.stream import Address
from cclm.data.tokens import TextTokenizer
from cclm.objectives.options import ObjectiveConfig
from cclm.shardfile.reader import Memory
from cclm.types import ImageTextRecord
from cclm.views.captions import choose_caption, other_captions
from cclm.views.image_text.options import ImageTextConfig, ImageViewConfig
from cclm.views.images import ImageBatch, ImageBuffer, image_rows
from cclm.views.view import Contrast, Contribution, EncodedView, Side, View


@dataclass(frozen=True, kw_only=True)
class ImageTextBatch(ImageBatch):
    """B images, each with one caption (or two), on one rank."""

    second_text: Tokens | None = None
    """Another caption of each image, B rows; None unless two are wanted."""

    @property
    def texts(self) -> tuple[Tokens, ...]:
        """Captions, and second captions if there are any."""
        return (self.text,) if self.second_text is None else (self.text, self.second_text)


@dataclass(frozen=True, kw_only=True)
class ImageTextSample:
    """One image with one caption."""

    pixels_CHW: NDArray[np.uint8] | NDArray[np.float32]
    """Augmented; floats are normalised, bytes will be on the device."""
    ids: Sequence[int]
    """The caption."""
    second_ids: Sequence[int] | None
    """Another caption of it; None unless two are wanted."""
    languages: Sequence[str]
    identity: int
    """63-bit hash of what the image shows."""
    ledger: int
    """64-bit hash of the sample."""
    fusion: FusionDraws | None
    """None for samples outside the matching rows."""
    texts: Sequence[str] = ()
    taught: Keys = field(default_factory=dict)
    """Of what a teacher may have features."""


def image_text_sample(
    record: ImageTextRecord,
    image: Image.Image | bytes,
    config: ImageTextConfig,
    tokenizer: TextTokenizer,
    generator: np.random.Generator,
    fusion: bool,
    requested: RequestedLanguage | None = None,
) -> ImageTextSample:
    """Draw, in this order: language and caption (and, if two are wanted, the second), augmentation, masks, noise.

    `image`: the record's image, encoded (for a crop) or after `image.prepare`; the record's bytes are not looked at.
    `fusion`: whether it is one of the matching rows. `requested`: which language to show; None: all alike.

    Raises:
        DataError: `caption_missing` (none in the wanted languages), `caption_single` (no second one), `text_empty`.
    """
    which, draw = generator.random(2).tolist()
    language, choice = choose_caption(record.captions, config, which, draw, requested)
    captions, told, languages = [record.captions[language][choice]], f"{language}:{choice}", [language]
    if config.captions_per_image == 2:
        rest = other_captions(record.captions, language, choice, config, requested)
        another = None if requested is None else replace(requested, language=None)
        which, draw = generator.random(2).tolist()
        language, choice = choose_caption(rest, config, which, draw, another)
        captions.append(rest[language][choice])
        languages.append(language)
        told += f",{language}:{choice}"
    ids, *others = tokenizer.encode(captions, config.max_tokens, config.max_words)
    pixels = training_pixels(image, config.transform, generator)
    return ImageTextSample(
        pixels_CHW=pixels,
        ids=ids,
        second_ids=others[0] if others else None,
        languages=languages,
        identity=identity_hash(record.identity or record.key),
        ledger=sample_hash(record.source, record.key, told),
        fusion=fusion_draws(ids, config.masking, config.negative_group, tokenizer, generator) if fusion else None,
        texts=captions,
    )


class ImageTextSource(Source[ImageTextConfig, ImageTextSample]):
    """Shard sets of images with captions."""

    stream_bits = 0
    sample_purpose = 3

    @cached_property
    def _memory(self) -> Memory[tuple[ImageTextRecord, Image.Image]]:
        return Memory(self.config.transform.cache_bytes)

    def batch(self, step: int, rows: range, bad: list[BadSample]) -> ImageTextBatch:
        """Build the batch of some rows of a step."""
        matching, is_counted = self.matching_rows(rows)
        buffer = ImageBuffer(len(rows))
        samples = [
            replace(sample, pixels_CHW=buffer.put(sample.pixels_CHW))
            for sample in self.samples(step, rows, bad, matching=matching)
        ]
        pad_id, multiple = self.tokenizer.pad_id, self.pad_multiple
        seconds = [sample.second_ids for sample in samples if sample.second_ids is not None]
        return ImageTextBatch(
            images_BCHW=buffer.tensor(),
            pixel_scale=PixelScale(mean=self.config.transform.mean, std=self.config.transform.std),
            text=pad([sample.ids for sample in samples], pad_id, multiple),
            second_text=pad(seconds, pad_id, multiple) if seconds else None,
            identity_R=int64([sample.identity for sample in samples]),
            ledger_S=int64([sample.ledger for sample in samples]),
            taught={} if self.teacher is None else self.teacher.rows([sample.taught for sample in samples], rows),
            **row_tensors(rows, [sample.fusion for sample in samples], is_counted, pad_id, multiple),
        )

    def make(self, address: Address, fusion: bool) -> ImageTextSample:
        """Read a record and make a sample of it."""
        record, image = self._load(address)
        generator, requested = self.generator(address), self.requested(address)
        sample = image_text_sample(record, image, self.config, self.tokenizer, generator, fusion, requested)
        if self.teacher is None:
            return sample
        keys = {side: [text_hash(text)] for side, text in zip(("text", "second_text"), sample.texts, strict=False)}
        if self.teacher.has_images:
            keys["image"] = [self.teacher.image_hash(address.source, record.key)]
        return replace(sample, taught=keys)

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
        image = prepare(decode_image(record.image), transform)
        record = replace(record, image=b"")
        captions = sum(sys.getsizeof(text) for texts in record.captions.values() for text in texts)
        # Pillow keeps four bytes for each RGB pixel; a kilobyte for the objects around it
        self._memory.put(key, (record, image), 4 * image.width * image.height + captions + 1024)
        return record, image


class ImageTextView(View[ImageViewConfig, ImageBatch]):
    """Images with captions."""

    source: ClassVar[type[Any]] = ImageTextSource

    def contribute(self, objectives: ObjectiveConfig, batch: ImageBatch, encoded: EncodedView) -> Contribution:
        """Contrast images and captions; rows for matching and masked-LM.

        With two captions the image-text loss is the mean of both captions', and captions are contrasted with each other
        (spec §2.5); everything else is about the first.
        """
        assert encoded.images is not None
        features = encoded.images.feature_BE, *(texts.feature_BE for texts in encoded.texts)
        image, *texts = (Side(feature_NE=feature, identity_N=batch.identity_R) for feature in features)
        contrasts = [Contrast(name="itc", weight=objectives.itc_weight, pairs=[(image, text) for text in texts])]
        if len(texts) > 1:
            contrasts.append(Contrast(name="ttc", weight=objectives.ttc_weight, pairs=[(texts[0], texts[1])]))
        sides = dict(zip(("image", "text", "second_text"), features, strict=False))
        return replace(image_rows(objectives, batch, encoded, contrasts), taught=sides)
