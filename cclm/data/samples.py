"""One record → one training sample: everything random about it is drawn here, from the sample's own generator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cclm.data.config import ImageTextDataConfig, TextPairDataConfig
from cclm.data.languages import LanguageWish
from cclm.data.ledger import identity_hash, sample_hash
from cclm.data.masking import MaskedText, mask_text
from cclm.data.options import MaskingConfig
from cclm.data.photo import training_pixels
from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.types import ImageTextRecord, TextPair

SMALLEST = 5e-324
"""Stands for a draw of exactly 0, which has no logarithm."""


class CaptionRules(Protocol):
    """What decides which caption of a record is taken."""

    @property
    def languages(self) -> tuple[str, ...] | None:
        """Languages to choose from; None: all."""
        ...

    @property
    def first_caption_probability(self) -> float | None:
        """Probability of a language's first caption; None: all alike."""
        ...


@dataclass(frozen=True, kw_only=True)
class FusionDraws:
    """What a sample needs if its pair goes through the fusion encoder as a positive."""

    masked: MaskedText
    """The caption, or the text in the image's role (TLM: both sentences in one), with hidden tokens."""
    noise_second_G: NDArray[np.float32]
    """Gumbel noise over the negative group's second sides."""
    noise_first_G: NDArray[np.float32]
    """Gumbel noise over the negative group's first sides."""


@dataclass(frozen=True, kw_only=True)
class ImageTextSample:
    """One picture with one caption."""

    pixels_CHW: NDArray[np.uint8] | NDArray[np.float32]
    """Augmented; floats are normalised, bytes will be on the device."""
    ids: Sequence[int]
    """The caption."""
    second_ids: Sequence[int] | None
    """Another caption of it; None unless two are wanted."""
    languages: Sequence[str]
    """Of its captions."""
    identity: int
    """63-bit hash of what the picture shows."""
    ledger: int
    """64-bit hash of the sample."""
    fusion: FusionDraws | None
    """None for samples outside the matching rows."""


@dataclass(frozen=True, kw_only=True)
class TextPairSample:
    """One sentence with K translations."""

    anchor: Sequence[int]
    """The shared sentence."""
    others: Sequence[Sequence[int]]
    """K translations."""
    swapped: bool
    """Whether the first translation plays the image's role, and the sentence asks."""
    languages: Sequence[str]
    """Of the sentence and its translations."""
    identity: int
    """63-bit hash of the group."""
    ledger: int
    """64-bit hash of the sample."""
    fusion: FusionDraws | None
    """None for samples outside the matching rows."""


def image_text_sample(
    record: ImageTextRecord,
    picture: Image.Image | bytes,
    config: ImageTextDataConfig,
    tokenizer: TextTokenizer,
    generator: np.random.Generator,
    fusion: bool,
    wish: LanguageWish | None = None,
) -> ImageTextSample:
    """Draw, in this order: language and caption (and, if two are wanted, the second), augmentation, masks, noise.

    Args:
        record: the stored record (its image bytes are not looked at).
        picture: the record's picture: encoded (for a crop), or after `image.prepare`.
        config: the view's settings.
        tokenizer: of the run.
        generator: the sample's own.
        fusion: whether it is one of the matching rows.
        wish: which language to show; None: all alike.

    Raises:
        DataError: `caption_missing` (none in the wanted languages), `caption_single` (no second one), `text_empty`.
    """
    which, draw = generator.random(2).tolist()
    language, choice = choose_caption(record.captions, config, which, draw, wish)
    captions, told, languages = [record.captions[language][choice]], f"{language}:{choice}", [language]
    if config.captions_per_image == 2:
        rest = other_captions(record.captions, language, choice, config, wish)
        another = None if wish is None else replace(wish, language=None)
        which, draw = generator.random(2).tolist()
        language, choice = choose_caption(rest, config, which, draw, another)
        captions.append(rest[language][choice])
        languages.append(language)
        told += f",{language}:{choice}"
    ids, *others = tokenizer.encode(captions, config.max_tokens, config.max_words)
    pixels = training_pixels(picture, config.transform, generator)
    return ImageTextSample(
        pixels_CHW=pixels,
        ids=ids,
        second_ids=others[0] if others else None,
        languages=languages,
        identity=identity_hash(record.identity or record.key),
        ledger=sample_hash(record.source, record.key, told),
        fusion=fusion_draws(ids, config.masking, config.negative_group, tokenizer, generator) if fusion else None,
    )


def other_captions(
    captions: Mapping[str, Sequence[str]],
    language: str,
    choice: int,
    config: CaptionRules,
    wish: LanguageWish | None = None,
) -> dict[str, Sequence[str]]:
    """What the second caption is chosen from: the other languages (with a weight, if languages are dealt); without
    any, the language's other captions."""
    wanted = captions if config.languages is None else {name: captions.get(name, ()) for name in config.languages}
    if wish is not None:
        wanted = {name: texts for name, texts in wanted.items() if name in wish.weights}
    rest: dict[str, Sequence[str]] = {name: texts for name, texts in wanted.items() if texts and name != language}
    if not rest:
        own = captions[language]
        rest = {language: [*own[:choice], *own[choice + 1 :]]}
    if not any(rest.values()):
        raise DataError(
            reason="caption_single",
            expected="two captions in the wanted languages (captions_per_image: 2)",
            got="one",
            do="Set captions_per_image: 1, or leave the record out of the shards.",
        )
    return rest


def choose_caption(
    captions: Mapping[str, Sequence[str]],
    config: CaptionRules,
    language_draw: float,
    caption_draw: float,
    wish: LanguageWish | None = None,
) -> tuple[str, int]:
    """Pick a language (the wished one, or all alike) and one of its captions, by two uniform numbers."""
    names = sorted(captions) if config.languages is None else [name for name in config.languages if name in captions]
    names = [name for name in names if captions[name]]
    wished = None if wish is None else wish.pick(names, language_draw)
    if not names or (wish is not None and wished is None):
        raise DataError(
            reason="caption_missing",
            expected="a caption in "
            + ("any language" if config.languages is None else ", ".join(config.languages))
            + ("" if wish is None else f" with a weight ({', '.join(wish.weights)})"),
            got=f"captions in {', '.join(sorted(captions)) or 'no language'}",
            do="Change `languages`, or leave the record out of the shards.",
        )
    name = wished or names[int(language_draw * len(names))]
    count, first = len(captions[name]), config.first_caption_probability
    if count == 1:
        return name, 0
    if first is None:
        return name, int(caption_draw * count)
    if caption_draw < first:
        return name, 0
    rest = (caption_draw - first) / (1.0 - first)
    return name, min(count - 1, 1 + int(rest * (count - 1)))


def text_pair_sample(
    pairs: Sequence[TextPair],
    config: TextPairDataConfig,
    tokenizer: TextTokenizer,
    generator: np.random.Generator,
    fusion: bool,
    wish: LanguageWish | None = None,
) -> TextPairSample:
    """Draw, in this order: which K pairs of the group, who plays the image's role, masks, noise.

    Raises:
        DataError: `text_empty`, `translation_missing` (none in the wished languages).
    """
    chosen = choose_pairs([pair.lang_b for pair in pairs], config.pairs_per_sample, generator, wish)
    swapped = bool(generator.random() < config.swap_probability)
    texts = [pairs[0].text_a, *(pairs[index].text_b for index in chosen)]
    anchor, *others = tokenizer.encode(texts, config.max_tokens, config.max_words)
    memory, query = (others[0], anchor) if swapped else (anchor, others[0])
    masked = [*memory, *query[1:]] if config.tlm else memory
    first = pairs[0]
    return TextPairSample(
        anchor=anchor,
        others=others,
        swapped=swapped,
        languages=[first.lang_a, *(pairs[index].lang_b for index in chosen)],
        identity=identity_hash(first.group or first.text_a),
        ledger=sample_hash(first.source, first.group, ",".join(map(str, chosen))),
        fusion=fusion_draws(masked, config.masking, config.negative_group, tokenizer, generator) if fusion else None,
    )


def choose_pairs(
    languages: Sequence[str], wanted: int, generator: np.random.Generator, wish: LanguageWish | None
) -> list[int]:
    """K translations of a group by the languages of all of them; with repetition only if it has fewer.

    Without a wish all are alike. With one the first is in the dealt language, if there is any, and the others are
    drawn by weight (Efraimidis and Spirakis 2006: the largest u^(1/weight) win; by logarithms, which do not underflow).
    """
    count = len(languages)
    if wish is None:
        if count >= wanted:
            return [int(index) for index in generator.permutation(count)[:wanted]]
        return [int(index) for index in generator.integers(count, size=wanted)]
    draws = generator.random(count + wanted).tolist()
    weights = [wish.weights.get(name, 0.0) for name in languages]
    shown = [index for index in range(count) if weights[index] > 0]
    order = sorted(shown, key=lambda index: -math.log(draws[index] or SMALLEST) / weights[index])
    if not order:
        raise DataError(
            reason="translation_missing",
            expected=f"a translation into a language with a weight ({', '.join(wish.weights)})",
            got=", ".join(languages),
            do="Give its language a weight in `mix.language_weights`, or leave the group out of the shards.",
        )
    order.sort(key=lambda index: languages[index] != wish.language)  # stable: the dealt language goes first
    return [*order[:wanted], *(order[int(draw * len(order))] for draw in draws[count + len(order) :])]


def fusion_draws(
    ids: Sequence[int],
    masking: MaskingConfig,
    negative_group: int,
    tokenizer: TextTokenizer,
    generator: np.random.Generator,
) -> FusionDraws:
    """Draw masks of a text, then the noise for its hard negatives among `negative_group` candidates."""
    masked = mask_text(ids, masking, tokenizer.mask_id, tokenizer.vocab_size, generator)
    noise = generator.gumbel(size=(2, negative_group)).astype(np.float32)
    return FusionDraws(masked=masked, noise_second_G=noise[0], noise_first_G=noise[1])
