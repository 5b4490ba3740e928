"""One record → one sample of the image-text view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cclm.data.collate import FusionDraws, fusion_draws
from cclm.data.image import training_pixels
from cclm.data.ledger import identity_hash, sample_hash
from cclm.data.mix_plan import RequestedLanguage
from cclm.data.tokens import TextTokenizer
from cclm.types import ImageTextRecord
from cclm.views.captions import choose_caption, other_captions
from cclm.views.image_text.options import ImageTextConfig


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
    """Of its captions."""
    identity: int
    """63-bit hash of what the image shows."""
    ledger: int
    """64-bit hash of the sample."""
    fusion: FusionDraws | None
    """None for samples outside the matching rows."""


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

    Args:
        record: the stored record (its image bytes are not looked at).
        image: the record's image: encoded (for a crop), or after `image.prepare`.
        config: the view's settings.
        tokenizer: of the run.
        generator: the sample's own.
        fusion: whether it is one of the matching rows.
        requested: which language to show; None: all alike.

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
    )
