"""The text-pair view: sentences with translations.

| first side, the memory | second side, the query | masked text | memory of the masked text |
|---|---|---|---|
| "text 1" | "text 2" | text 1 | text 2 (TLM: both in one text, no memory) |

Which of a pair's two sentences is text 1 is drawn for each sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from cclm.data.batch import BadSample, Tokens, ViewBatch
from cclm.data.collate import fusion_tensors, int64, pad
from cclm.data.source import Source
from cclm.data.stream import Address
from cclm.data.tokens import TextTokenizer
from cclm.errors import DataError
from cclm.shardfile.options import CacheConfig
from cclm.shardfile.reader import Memory
from cclm.types import TextPair
from cclm.views.rows import FusionRows, negatives, select
from cclm.views.text_pair.options import TextPairConfig
from cclm.views.text_pair.samples import TextPairSample, text_pair_sample
from cclm.views.view import Contribution, EncodedView, Loss, MatchingRows, StepContext, View


@dataclass(frozen=True, kw_only=True)
class TextPairBatch(ViewBatch):
    """P sentence pairs on one rank; each distinct text of the batch stands once in `text`.

    Samples are groups of translations of one sentence: S samples of K pairs each, P = S · K, pairs of a sample
    consecutive. Fusion rows use the first pair of a sample; `masked` holds their "text 1", or with TLM both sentences.
    """

    text: Tokens
    """U distinct texts."""
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

    @property
    def texts(self) -> tuple[Tokens, ...]:
        """The distinct texts."""
        return (self.text,)


class TextPairSource(Source[TextPairConfig, TextPairSample]):
    """Shard sets of sentences with translations."""

    stream_bits = 1 << 63
    sample_purpose = 4

    def __init__(
        self,
        name: str,
        config: TextPairConfig,
        tokenizer: TextTokenizer,
        seed: int,
        cache: CacheConfig | None = None,
        pad_multiple: int = 1,
    ) -> None:
        super().__init__(name, config, tokenizer, seed, cache, pad_multiple, config.length_buckets)
        self._memory: Memory[list[TextPair]] = Memory(config.cache_groups)

    def batch(self, step: int, groups: range, bad: list[BadSample]) -> TextPairBatch:
        """Build the batch of some negative groups of a step; equal token sequences become one row of `text`."""
        samples = list(self.samples(step, self.slots(groups), bad))
        return collate(samples, self.tokenizer.pad_id, self.pad_multiple)

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
        return text_pair_sample(pairs, self.config, self.tokenizer, generator, fusion, requested)


def collate(samples: list[TextPairSample], pad_id: int, multiple: int = 1) -> TextPairBatch:
    """Stack samples. Rows of `text` stand in the order of their first use: a sample's sentence, its translations."""
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
        **fusion_tensors([sample.fusion for sample in samples], pad_id, multiple),
    )


class TextPairView(View[TextPairConfig, TextPairBatch]):
    """Sentences with translations."""

    def open(self, tokenizer: TextTokenizer, seed: int, cache: CacheConfig, pad_multiple: int) -> TextPairSource:
        """Open the view's shard sets."""
        return TextPairSource(self.name, self.config, tokenizer, seed, cache, pad_multiple)

    def contribute(self, step: StepContext, batch: TextPairBatch, encoded: EncodedView) -> Contribution:
        """Contrast sentences and translations; rows for matching and masked-LM, or for TLM."""
        texts, row_F = encoded.texts[0], batch.matching_row_F
        temperature = step.temperature * step.objectives.text_temperature_factor
        text_UE, states = texts.feature_BE, (texts.states_BLD, texts.mask_BL)
        pairs_per_sample = batch.first_P.shape[0] // batch.identity_S.shape[0]
        ttc = step.contrast(
            text_UE[batch.first_P[::pairs_per_sample]],
            text_UE[batch.second_P],
            (batch.identity_S, batch.identity_P),
            temperature,
        )
        losses = {"ttc": Loss(term=ttc, weight=step.objectives.ttc_weight)}
        query_FLD, query_mask_FL = encoded.masked_FLD, encoded.masked_mask_FL
        if self.config.tlm:
            alone = FusionRows(query_FLD=query_FLD, query_mask_FL=query_mask_FL, memory_FND=None, memory_mask_FN=None)
            return Contribution(losses=losses, matched=None, masked=alone)
        other_query_F, other_memory_F = negatives(
            text_UE[batch.memory_S],
            text_UE[batch.query_S],
            batch.identity_S,
            row_F,
            (batch.noise_second_FG, batch.noise_first_FG),
            temperature,
            step.hardness,
        )
        matched = select(
            states,
            batch.query_S[torch.cat([row_F, row_F, other_query_F])],
            states,
            batch.memory_S[torch.cat([row_F, other_memory_F, row_F])],
        )
        answer_F = batch.query_S[row_F]
        masked = FusionRows(
            query_FLD=query_FLD,
            query_mask_FL=query_mask_FL,
            memory_FND=texts.states_BLD[answer_F],
            memory_mask_FN=texts.mask_BL[answer_F],
        )
        matching = MatchingRows(name="ttm", weight=step.objectives.ttm_weight, rows=matched)
        return Contribution(losses=losses, matched=matching, masked=masked)
