"""One group of translations → one sample of the text-pair view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cclm.data.collate import FusionDraws, fusion_draws
from cclm.data.ledger import identity_hash, sample_hash
from cclm.data.mix_plan import RequestedLanguage
from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.types import TextPair
from cclm.views.text_pair.options import TextPairConfig

SMALLEST = 5e-324
"""Stands for a draw of exactly 0, which has no logarithm."""


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


def text_pair_sample(
    pairs: Sequence[TextPair],
    config: TextPairConfig,
    tokenizer: TextTokenizer,
    generator: np.random.Generator,
    fusion: bool,
    requested: RequestedLanguage | None = None,
) -> TextPairSample:
    """Draw, in this order: which K pairs of the group, who plays the image's role, masks, noise.

    Raises:
        DataError: `text_empty`, `translation_missing` (none in the requested languages).
    """
    chosen = choose_pairs([pair.lang_b for pair in pairs], config.pairs_per_sample, generator, requested)
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
    languages: Sequence[str], wanted: int, generator: np.random.Generator, requested: RequestedLanguage | None
) -> list[int]:
    """K translations of a group by the languages of all of them; with repetition only if it has fewer.

    Without a request all are alike. With one the first is in that language, if there is any, and the others are
    drawn by weight (Efraimidis and Spirakis 2006: the largest u^(1/weight) win; by logarithms, which do not underflow).
    """
    count = len(languages)
    if requested is None:
        if count >= wanted:
            return [int(index) for index in generator.permutation(count)[:wanted]]
        return [int(index) for index in generator.integers(count, size=wanted)]
    draws = generator.random(count + wanted).tolist()
    weights = [requested.weights.get(name, 0.0) for name in languages]
    shown = [index for index in range(count) if weights[index] > 0]
    order = sorted(shown, key=lambda index: -math.log(draws[index] or SMALLEST) / weights[index])
    if not order:
        raise DataError(
            reason="translation_missing",
            expected=f"a translation into a language with a weight ({', '.join(requested.weights)})",
            got=", ".join(languages),
            do="Give its language a weight in `mix.language_weights`, or leave the group out of the shards.",
        )
    order.sort(key=lambda index: languages[index] != requested.language)  # stable: the requested language goes first
    return [*order[:wanted], *(order[int(draw * len(order))] for draw in draws[count + len(order) :])]
