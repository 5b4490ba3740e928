"""The settings of the text-pair view."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from cclm.data.config import ViewConfig
from cclm.data.options import MaskingConfig, TeacherConfig
from cclm.shardfile.options import is_remote
from cclm.types import Bounds, Count, Positive, Share, View


@dataclass(frozen=True, kw_only=True)
class TextPairConfig(ViewConfig):
    """Sentences with translations; a row is one sentence (a group) with some of its translations."""

    pairs_per_sample: Positive = 1
    """K: translations drawn for each sentence; with repetition only if it has fewer."""
    swap_probability: Share = 0.5
    """Probability that the translation, not the shared sentence, plays the image's role in the fusion encoder."""
    tlm: bool = False
    """Translation language modelling in place of matching and conditional masked-LM (published as `use_tlm`): both
    sentences in one text of up to 2 · max_tokens - 1 tokens; raise `masking.max_masks` with it."""
    max_tokens: Annotated[int, Bounds(least=3)] = 64
    """Longest text in tokens, with `<s>` and `</s>`."""
    masking: MaskingConfig = field(default_factory=lambda: MaskingConfig(max_masks=20))
    """How sentences are masked."""
    window: Positive = 1024
    """Groups of a lane that are shuffled together. A rank keeps 32 decoded blocks: window · pairs per group · its
    lanes should not span many more."""
    length_buckets: Positive = 1
    """Each window is read in so many parts of similar length, so that a batch needs little padding; 1: none. Reads
    a whole window's blocks when it begins; for local shards."""
    cache_groups: Count = 0
    """Decoded groups kept in each process; 0 for none. For corpora that fit into memory."""
    teacher: TeacherConfig | None = None
    """Pull features of both sides to those of another model; null: none."""

    record_view: ClassVar[View] = View.TEXT_PAIR

    @property
    def pairs_per_step(self) -> int:
        """Sentence pairs over all ranks."""
        return self.batch_size * self.pairs_per_sample

    @property
    def longest_text(self) -> int:
        """Positions that the text encoder needs."""
        return 2 * self.max_tokens - 1 if self.tlm else self.max_tokens

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        yield from super().validation_errors()
        is_far = any(is_remote(source.path) for source in self.sources.values())
        if self.length_buckets > self.window or (self.length_buckets > 1 and is_far):
            yield f"length_buckets must be 1 to window, and 1 for remote shards, is {self.length_buckets}"
