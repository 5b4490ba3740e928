"""The settings of the data: what is common to all views, and the base of a view's own (`cclm/views/*/options.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, ClassVar

from cclm.data.options import MaskingConfig, MixConfig, Normalise, Schedule, SourceConfig, TeacherConfig
from cclm.model.options import ModelOptions
from cclm.shardfile.options import CacheConfig
from cclm.types import Bounds, Count, LocalPath, Positive, Rows, Share, View

LARGEST_GROUP_WITH_NOISE = 1024
"""Rows of a negative group for each of which the loader draws noise; a draw in a larger one needs one number."""


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """What every view can be told. A *row* is what is contrasted: an image with its caption, a sentence, a region."""

    sources: Mapping[str, SourceConfig]
    """The shard sets by names of your choice, which logs and schedules use."""
    mix: MixConfig = field(default_factory=MixConfig)
    """How the proportions of sources and languages are chosen."""
    batch_size: Rows = 128
    """Rows per step, over all ranks."""
    negative_group: Count = 64
    """G: hard negatives are drawn inside blocks of G consecutive rows, whatever the ranks: a block may span several.
    0: global negatives, G is the batch size (which a run's own configuration then says)."""
    matching_rows: Positive = 32
    """Rows per step, over all ranks, that also go through the fusion encoder as positives; the first ones of each
    negative group, equally many of each. If they are not all, a rank that holds none of them waits for the others."""
    num_lanes: Rows = 8
    """Lanes of the stream, any number; with a large common factor with the batch size each rank reads lanes (and so
    shards) of its own. Part of the order of samples, so it stays when the number of ranks changes."""
    window: Positive = 1024
    """Samples of a lane that are shuffled together."""
    max_tokens: Annotated[int, Bounds(least=3)] = 40
    """Longest text in tokens, with `<s>` and `</s>`."""
    max_words: Positive | None = None
    """Longest text in space-separated words; None: no limit."""
    masking: MaskingConfig = field(default_factory=lambda: MaskingConfig(max_masks=12))
    """How texts are masked."""

    def __post_init__(self) -> None:
        """Let global negatives be a group as any other."""
        if self.negative_group == 0:
            object.__setattr__(self, "negative_group", self.batch_size)

    record_view: ClassVar[View | None]
    """What the shard sets must hold; None: the sources are annotation files."""
    trains: ClassVar[frozenset[str]] = frozenset()
    """Parts of the network that not every view trains: "vision", "boxes"."""

    # A view may have these two as fields; no annotations here, or they would not stand where it declares them.
    @property
    def teacher(self) -> TeacherConfig | None:
        """Whose features the view's own are pulled to; None: nobody's."""
        return None

    @property
    def length_buckets(self) -> int:
        """Parts of similar text length in which a window is read; more than 1 needs `Source.lengths`."""
        return 1

    @property
    def ordered_sources(self) -> dict[str, SourceConfig]:
        """The sources in the order of their names, which numbers them: where they stand in a file changes nothing."""
        return dict(sorted(self.sources.items()))

    def named_files(self) -> Iterator[tuple[str, str]]:
        """Yield the key and the path of every annotation file that the view reads, if it reads any."""
        return iter(())

    @property
    def num_groups(self) -> int:
        """Negative groups of a step."""
        return self.batch_size // self.negative_group

    @property
    def rows_per_group(self) -> int:
        """Rows of each negative group that go through the fusion encoder."""
        return self.matching_rows // self.num_groups

    def is_matching_row(self, row: int) -> bool:
        """Return whether a row of the global batch goes through the fusion encoder."""
        return row % self.negative_group < self.rows_per_group

    @property
    def samples_per_step(self) -> int:
        """Samples that a step reads from the stream, over all ranks."""
        return self.batch_size

    @property
    def pairs_per_step(self) -> int:
        """What the speed of a run is counted in, over all ranks."""
        return self.batch_size

    @property
    def longest_text(self) -> int:
        """Positions that the text encoder needs."""
        return self.max_tokens

    @property
    def takes_turns_with(self) -> tuple[str, float] | None:
        """Schedule "alternate": a view that steps hold in place of this one, and this one's share; None: every step."""
        return None

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself, whatever the number of ranks; each sentence begins with a field."""
        without = sorted(name for name, source in self.sources.items() if source.weight is None)
        if not self.sources:
            yield "sources must name at least one shard set"
        elif 0 < len(without) < len(self.sources):
            yield f"sources: a weight for all or for none; without: {', '.join(without)}"
        elif not without and not any(source.weight for source in self.sources.values()):
            yield "sources: weights are all 0"
        for number, stage in enumerate(self.mix.schedule):
            if stage.weights is not None and set(stage.weights) != set(self.sources):
                known, named = ", ".join(self.sources), ", ".join(stage.weights)
                yield f"mix.schedule[{number}].weights name every source once ({known}), are for {named}"
        yield from self.group_errors()

    def group_errors(self) -> Iterator[str]:
        """Yield what contradicts itself about negative groups."""
        if self.negative_group < 2:
            yield "negative_group must be at least 2: a row needs another one as its negative"
        elif self.batch_size % self.negative_group:
            yield f"batch_size {self.batch_size} is no multiple of negative_group {self.negative_group}"
        elif self.matching_rows % self.num_groups or self.matching_rows > self.batch_size:
            yield (
                f"matching_rows {self.matching_rows} is no multiple of the {self.num_groups} negative groups, "
                f"or above {self.batch_size}"
            )

    def model_errors(self, model: ModelOptions, pad_multiple: int) -> Iterator[str]:
        """Yield in what these settings and the network do not fit; sizes of a named source are not known yet."""
        if self.teacher is not None and not model.pretraining_heads:
            yield "teacher: it teaches features, which model.pretraining_heads: true has"
        if model.text.source is not None:
            return
        longest = model.text.max_positions - model.text.position_offset
        padded = -(-self.longest_text // pad_multiple) * pad_multiple
        if self.longest_text > longest:
            yield f"max_tokens: texts of {self.longest_text} tokens exceed the {longest} positions of model.text"
        elif padded > longest:
            yield f"max_tokens: {padded} positions with data.pad_multiple, model.text has {longest}"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Everything that is the same for all views, and decides what stands in a batch."""

    tokenizer: LocalPath
    """Folder with tokenizer.json (or XLM-RoBERTa's SentencePiece file), or a model's name on the Hugging Face hub."""
    normalise: Normalise = "none"
    """Preparation of texts before the tokenizer: `cclm` as published (lower case, no ASCII punctuation), or none."""
    schedule: Schedule = "joint"
    """"joint": every step holds all views and makes one update (CCLM-X2VLM; the default). "alternate": one update for
    each view of a step, and views that take turns by a coin (CCLM-3M/4M)."""
    bad_sample_limit: Share = 0.001
    """Share of broken samples above which a run fails."""
    num_workers: Annotated[int, Bounds(least=0, most=512)] | None = 0
    """Worker processes of each rank that prepare batches ahead; 0: in the training process; null: as many as the rank's
    cores allow on a GPU, none on a CPU. Changes no result."""
    batch_timeout_s: Annotated[float, Bounds(above=0)] = 900.0
    """A worker that delivers no batch for so long has hung, and ends the run; slower batches need more."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Where remote shards (http, s3, gs, hf) are kept on each node. Changes no result."""
    micro_batches: Positive = 1
    """Parts in which a step is computed, one after another, to need less memory (gradient accumulation); each is made
    of whole negative groups. Changes no loss: features of all parts are computed first, without gradient, and again
    part by part with it (GradCache, arXiv 2101.06983), which costs the encoders' forward pass."""
    pad_multiple: Positive = 8
    """Texts are padded to the longest of the rank's batch, rounded up to a multiple of this."""


Views = Mapping[str, ViewConfig]
"""The views of a run by name, in the order of the table (`cclm/views/table.py`)."""


def rows_of_rank(num_rows: int, rank: int, world_size: int) -> range:
    """Return the rows of a micro-batch of n rows that a rank holds: consecutive ones, as evenly as they go."""
    return range(rank * num_rows // world_size, (rank + 1) * num_rows // world_size)


@cache
def rank_blocks(num_rows: int, negative_group: int, world_size: int) -> tuple[range, ...]:
    """Return the ranks that share negative groups of a micro-batch of n rows: neighbours, cut where a group ends with a
    rank's rows."""
    ends = [rows_of_rank(num_rows, rank, world_size).stop for rank in range(world_size)]
    cuts = [rank + 1 for rank, end in enumerate(ends) if end % negative_group == 0]
    return tuple(range(first, stop) for first, stop in zip([0, *cuts], cuts, strict=False))


def rank_errors(views: Views, config: DataConfig, world_size: int) -> Iterator[str]:
    """Yield why so many ranks and micro-batches cannot share the batches, a sentence for each view."""
    for name, view in views.items():
        parts, rows = config.micro_batches, view.batch_size // config.micro_batches
        if view.num_groups % parts:
            yield (
                f"views.{name}.batch_size: {view.num_groups} negative groups do not divide evenly into "
                f"{parts} micro-batches"
            )
        elif rows < world_size:
            yield f"views.{name}.batch_size: each of {world_size} ranks needs a row of a micro-batch, which has {rows}"
