"""The text-pair view: sentences with translations.

| first side, the memory | second side, the query | masked text | memory of the masked text |
|---|---|---|---|
| "text 1" | "text 2" | text 1 | text 2 (TLM: both in one text, no memory) |

Which of a pair's two sentences is text 1 is drawn for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from cclm.data.batch import BadSample, ViewBatch
from cclm.data.collate import FusionDraws, fusion_draws, int64, pad, row_tensors
from cclm.data.ledger import identity_hash, sample_hash, text_hash
from cclm.data.mix_plan import RequestedLanguage
from cclm.data.source import Keys, Source
from cclm.data.stream import Address
from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.objectives.options import ObjectiveConfig
from cclm.shardfile.reader import Memory
from cclm.types import TextPair
from cclm.views.text_pair.options import TextPairConfig
from cclm.views.view import Contrast, Contribution, EncodedRows, EncodedView, FusionRows, Pairing, Side, View, select

SMALLEST = 5e-324
"""Stands for a draw of exactly 0, which has no logarithm."""


@dataclass(frozen=True, kw_only=True)
class TextPairBatch(ViewBatch):
    """P sentence pairs on one rank; each distinct text of the batch stands once in `text`.

    Samples are groups of translations of one sentence: S samples of K pairs each, P = S · K, pairs of a sample
    consecutive. Fusion rows use the first pair of a sample; `masked` holds their "text 1", or with TLM both sentences.
    """

    first_P: Int[Tensor, " p"]
    """Row in `text` of each pair's side a."""
    second_P: Int[Tensor, " p"]
    """Row in `text` of each pair's side b."""
    identity_P: Int[Tensor, " p"]
    """63-bit hash of the pair's group."""
    memory_S: Int[Tensor, " s"]
    """Row in `text` that plays the image's role ("text 1") for each sample's first pair."""
    query_S: Int[Tensor, " s"]
    """Row in `text` of the other side ("text 2"), which is the query."""
    identity_S: Int[Tensor, " s"]
    """63-bit hash of each sample's group."""


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
    identity: int
    """63-bit hash of the group."""
    ledger: int
    """64-bit hash of the sample."""
    fusion: FusionDraws | None
    """None for samples outside the matching rows."""
    texts: Sequence[str] = ()
    taught: Keys = field(default_factory=dict)
    """Of what a teacher may have features."""


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
        texts=texts,
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


class TextPairSource(Source[TextPairConfig, TextPairSample]):
    """Shard sets of sentences with translations."""

    stream_bits = 1 << 63
    sample_purpose = 4

    @cached_property
    def _memory(self) -> Memory[list[TextPair]]:
        return Memory(self.config.cache_groups)

    def batch(self, step: int, rows: range, bad: list[BadSample]) -> TextPairBatch:
        """Build the batch of some rows of a step; equal token sequences become one row of `text`."""
        matching, is_counted = self.matching_rows(rows)
        samples = list(self.samples(step, rows, bad, matching=matching))
        batch = collate(samples, rows, is_counted, self.tokenizer.pad_id, self.pad_multiple)
        if self.teacher is None:
            return batch
        return replace(batch, taught=self.teacher.rows([sample.taught for sample in samples], rows))

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

    def make(self, address: Address, fusion: bool) -> TextPairSample:
        """Read a group and make a sample of it."""
        key = (address.source, address.shard, address.sample)
        pairs = self._memory.get(key)
        if pairs is None:
            pairs = self.sets[address.source].text_group(address.shard, address.sample)
            self._memory.put(key, pairs, 1)
        generator, requested = self.generator(address), self.requested(address)
        sample = text_pair_sample(pairs, self.config, self.tokenizer, generator, fusion, requested)
        if self.teacher is None:
            return sample
        first, *second = map(text_hash, sample.texts)
        return replace(sample, taught={"first": [first], "second": second})


def collate(
    samples: list[TextPairSample], rows: range, is_counted: bool, pad_id: int, multiple: int = 1
) -> TextPairBatch:
    """Stack samples, which are these rows of the global batch.

    Rows of `text` stand in the order of their first use: a sample's sentence, its translations.
    """
    row_of: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    second: list[int] = []
    memory: list[int] = []
    query: list[int] = []
    for sample in samples:
        anchor = row_of.setdefault(tuple(sample.anchor), len(row_of))
        others = [row_of.setdefault(tuple(ids), len(row_of)) for ids in sample.others]
        first += [anchor] * len(others)
        second += others
        memory.append(others[0] if sample.swapped else anchor)
        query.append(anchor if sample.swapped else others[0])
    return TextPairBatch(
        text=pad(list(row_of), pad_id, multiple),
        first_P=int64(first),
        second_P=int64(second),
        identity_P=int64([sample.identity for sample in samples for _ in sample.others]),
        memory_S=int64(memory),
        query_S=int64(query),
        identity_S=int64([sample.identity for sample in samples]),
        ledger_S=int64([sample.ledger for sample in samples]),
        **row_tensors(rows, [sample.fusion for sample in samples], is_counted, pad_id, multiple),
    )


class TextPairView(View[TextPairConfig, TextPairBatch]):
    """Sentences with translations."""

    source = TextPairSource

    def contribute(self, objectives: ObjectiveConfig, batch: TextPairBatch, encoded: EncodedView) -> Contribution:
        """Contrast sentences and translations; rows for matching and masked-LM, or for TLM."""
        texts, factor = encoded.texts[0], objectives.text_temperature_factor
        first_S = batch.first_P[:: batch.first_P.shape[0] // batch.identity_S.shape[0]]
        first = Side(feature_NE=texts.feature_BE[first_S], identity_N=batch.identity_S)
        second = Side(feature_NE=texts.feature_BE[batch.second_P], identity_N=batch.identity_P)
        weight, sides = objectives.ttc_weight, {"first": first.feature_NE, "second": second.feature_NE}
        contrasts = [Contrast(name="ttc", weight=weight, pairs=[(first, second)], temperature_factor=factor)]
        if self.config.tlm:
            return Contribution(contrasts=contrasts, masked=FusionRows(query=encoded.masked), taught=sides)
        memory, query = (
            EncodedRows(states=select(texts.states, row_S), feature_BE=texts.feature_BE[row_S])
            for row_S in (batch.memory_S, batch.query_S)
        )
        pairing = Pairing(
            name="ttm",
            weight=objectives.ttm_weight,
            memory=memory,
            query=query,
            identity_R=batch.identity_S,
            temperature_factor=factor,
        )
        masked = FusionRows(query=encoded.masked, memory=query.states, memory_row_F=batch.matching_row_F)
        return Contribution(contrasts=contrasts, pairing=pairing, masked=masked, taught=sides)
