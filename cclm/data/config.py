"""The settings of the data: what is common to all views, and the base of a view's own (`cclm/views/*/options.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cclm.data.masking import MaskingConfig
from cclm.model.configuration_cclm import ModelOptions
from cclm.shardfile.cache import CacheConfig
from cclm.types import View

Normalise = Literal["cclm", "none"]
Schedule = Literal["joint", "alternate"]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One shard set of a view."""

    path: str
    """Folder or address (http, s3, gs, hf) of the shard set."""
    weight: float | None = None
    """Its proportion in the mixture; for all sources of the view or for none. None: by size."""
    repeat: float = 1.0
    """Without weights: factor on its size; 2 shows its samples twice as often as 1 does."""
    max_epochs: float | None = None
    """How often its samples are shown at most; None: no limit. A source that is used up leaves the mixture, and the
    others share its place."""


@dataclass(frozen=True, kw_only=True)
class MixStage:
    """Other proportions from a step on."""

    start_step: int
    """The first step with these proportions."""
    weights: Mapping[str, float] | None = None
    """One for every source by its name, 0 to leave it out; None: as before."""
    language_weights: Mapping[str, float] | None = None
    """As in MixConfig; None: as before."""


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How the sources and languages of a view are mixed, beside the sources' weights."""

    temperature: float = 1.0
    """Without weights: a source's weight is its size to the power 1/temperature. 1: by size; 3.3 lifts small sources,
    as for parallel text in many languages; very large: all alike."""
    language_weights: Mapping[str, float] | None = None
    """Proportions of the languages of captions (of a group's translations), exact where the records have all of them;
    languages without a weight are not shown. None: all alike."""
    schedule: tuple[MixStage, ...] = ()
    """Other proportions from later steps on, in the order of their start."""

    @property
    def has_language_weights(self) -> bool:
        """Whether languages are drawn by weight at any step."""
        later = (stage.language_weights for stage in self.schedule)
        return any(weights is not None for weights in (self.language_weights, *later))


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """What every view can be told. A *row* is what is contrasted: an image with its caption, a sentence, a region."""

    sources: Mapping[str, SourceConfig]
    """The shard sets by names of your choice, which logs and schedules use."""
    mix: MixConfig = field(default_factory=MixConfig)
    """How the proportions of sources and languages are chosen."""
    batch_size: int = 128
    """Rows per step, over all ranks."""
    negative_group: int = 64
    """G: hard negatives are drawn inside blocks of G consecutive rows; a rank holds whole blocks, as evenly as they
    go, and so at least one."""
    matching_rows: int = 32
    """Rows per step, over all ranks, that also go through the fusion encoder as positives; the first ones of each
    negative group, equally many of each."""
    num_lanes: int = 8
    """Lanes of the stream, any number; with a large common factor with the batch size each rank reads lanes (and so
    shards) of its own. Part of the order of samples, so it stays when the number of ranks changes."""
    window: int = 1024
    """Samples of a lane that are shuffled together."""
    max_tokens: int = 40
    """Longest text in tokens, with `<s>` and `</s>`."""
    max_words: int | None = None
    """Longest text in space-separated words; None: no limit."""
    masking: MaskingConfig = field(default_factory=lambda: MaskingConfig(max_masks=12))
    """How texts are masked."""

    record_view: ClassVar[View]
    """What the shard sets must hold."""
    trains: ClassVar[frozenset[str]] = frozenset()
    """Parts of the network that not every view trains: "vision", "boxes"."""

    @property
    def ordered_sources(self) -> dict[str, SourceConfig]:
        """The sources in the order of their names, which numbers them: where they stand in a file changes nothing."""
        return dict(sorted(self.sources.items()))

    @property
    def num_groups(self) -> int:
        """Negative groups of a step."""
        return self.batch_size // self.negative_group

    @property
    def rows_per_group(self) -> int:
        """Rows of each negative group that go through the fusion encoder."""
        return self.matching_rows // self.num_groups

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

    def find_problems(self, world_size: int, micro_batches: int) -> Iterator[str]:
        """Yield everything that is wrong with these settings for a number of ranks, a sentence each."""
        yield from _source_problems(self.sources, self.mix)
        yield from _size_problems(self, world_size, micro_batches)
        if self.max_tokens < 3 or (self.max_words is not None and self.max_words < 1):
            yield f"max_tokens must be at least 3, max_words at least 1; are {self.max_tokens} and {self.max_words}"
        mask = self.masking
        if not (0 <= mask.mask_probability <= 1 and 0 <= mask.span_probability <= 1 and mask.max_masks >= 1):
            yield f"masking: probabilities must be between 0 and 1, max_masks at least 1; is {mask}"

    def find_model_problems(self, model: ModelOptions, pad_multiple: int) -> Iterator[str]:
        """Yield everything in which these settings and the network do not fit, a sentence each."""
        longest = model.text.max_positions - model.text.position_offset
        padded = -(-self.longest_text // pad_multiple) * pad_multiple
        if self.longest_text > longest:
            yield f"texts of {self.longest_text} tokens (max_tokens) exceed the {longest} positions of model.text"
        elif padded > longest:
            yield f"{padded} positions with data.pad_multiple, model.text has {longest}"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Everything that is the same for all views, and decides what stands in a batch."""

    tokenizer: str
    """Folder with tokenizer.json (or XLM-RoBERTa's SentencePiece file), or a model's name on the Hugging Face hub."""
    normalise: Normalise = "none"
    """Preparation of texts before the tokenizer: `cclm` as published (lower case, no ASCII punctuation), or none."""
    schedule: Schedule = "joint"
    """"joint": every step holds all views and makes one update (CCLM-X2VLM; the default). "alternate": one update for
    each view of a step, and views that take turns (regions and images) by a coin (CCLM-3M/4M)."""
    bad_sample_limit: float = 0.001
    """Share of broken samples above which a run fails."""
    num_workers: int = 0
    """Worker processes of each rank that prepare batches ahead; 0: in the training process. Changes no result."""
    batch_timeout_s: float = 900.0
    """A worker that delivers no batch for so long has hung, and ends the run; slower batches need more."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Where remote shards (http, s3, gs, hf) are kept on each node. Changes no result."""
    micro_batches: int = 1
    """Parts in which a step is computed, one after another, to need less memory (gradient accumulation). Changes no
    sample; but contrastive losses see only their part's negatives, and means are means of the parts' means."""
    pad_multiple: int = 8
    """Texts are padded to the longest of the rank's batch, rounded up to a multiple of this."""


Views = Mapping[str, ViewConfig]
"""The views of a run by name, in the order of the table (`cclm/views/table.py`)."""


def equal_shares(views: Views, config: DataConfig, world_size: int) -> bool:
    """Return whether every rank gets equally many rows of each view."""
    return all(view.num_groups // config.micro_batches % world_size == 0 for view in views.values())


def find_problems(views: Views, config: DataConfig, world_size: int = 1) -> Iterator[str]:
    """Yield everything that is wrong with the data's settings for a number of ranks, a sentence each."""
    if not views:
        yield "views: none is given"
    if not 0 <= config.bad_sample_limit <= 1:
        yield f"data.bad_sample_limit must be between 0 and 1, is {config.bad_sample_limit}"
    if config.cache.size_bytes < 1 or config.cache.attempts < 1 or config.cache.prefetch_steps < 0:
        yield "data.cache: size_bytes and attempts must be at least 1, prefetch_steps at least 0"
    if config.num_workers < 0 or config.pad_multiple < 1:
        yield (
            f"data: num_workers {config.num_workers} must be at least 0, pad_multiple {config.pad_multiple} at least 1"
        )
    if config.batch_timeout_s <= 0:
        yield f"data.batch_timeout_s must be above 0, is {config.batch_timeout_s:g}"
    if config.micro_batches < 1:
        yield f"data.micro_batches must be at least 1, is {config.micro_batches}"
    turns = [name for name, view in views.items() if view.takes_turns_with and view.takes_turns_with[0] in views]
    if config.schedule == "alternate" and len(turns) > 1:
        yield f"data.schedule: one view can take turns with another, not {len(turns)} ({', '.join(turns)})"
    for name, view in views.items():
        for problem in view.find_problems(world_size, max(1, config.micro_batches)):
            yield f"views.{name}: {problem}"


def _source_problems(sources: Mapping[str, SourceConfig], mix: MixConfig) -> Iterator[str]:
    """What is wrong with sources and their mixture."""
    if not sources:
        yield "sources must name at least one shard set"
    weights = {name: source.weight for name, source in sources.items() if source.weight is not None}
    if weights and len(weights) != len(sources):
        yield f"sources: a weight for all or for none; without: {', '.join(sorted(set(sources) - set(weights)))}"
    if weights:
        yield from _weight_problems("sources: weights", weights)
    for name, source in sources.items():
        if not source.path:
            yield f"sources.{name}.path is empty"
        if source.repeat <= 0 or (source.max_epochs is not None and source.max_epochs <= 0):
            yield f"sources.{name}: repeat and max_epochs are positive"
    if mix.temperature <= 0:
        yield f"mix.temperature must be positive, is {mix.temperature}"
    if mix.language_weights is not None:
        yield from _weight_problems("mix.language_weights", mix.language_weights)
    for stage in mix.schedule:
        if stage.weights is not None:
            yield from _weight_problems("mix.schedule: weights", stage.weights)
            if set(stage.weights) != set(sources):
                known, named = ", ".join(sources), ", ".join(stage.weights)
                yield f"mix.schedule: weights name every source once ({known}), are for {named}"
        if stage.language_weights is not None:
            yield from _weight_problems("mix.schedule: language_weights", stage.language_weights)
    starts = [stage.start_step for stage in mix.schedule]
    if starts != sorted(set(starts)) or min(starts, default=0) < 0:
        yield f"mix.schedule must be one stage after the other, from step 0 on; starts are {starts}"


def _weight_problems(what: str, weights: Mapping[str, float]) -> Iterator[str]:
    if min(weights.values(), default=0.0) < 0 or not any(weights.values()):
        yield f"{what} must be 0 or more, not all 0, are {dict(weights)}"


def _size_problems(view: ViewConfig, world_size: int, micro_batches: int) -> Iterator[str]:
    """What is wrong with batch, groups, rows, lanes and window."""
    batch, group, rows = view.batch_size, view.negative_group, view.matching_rows
    if min(batch, group, rows, view.num_lanes, view.window) < 1:
        yield "batch_size, negative_group, matching_rows, num_lanes and window must be at least 1"
    elif batch % group:
        yield f"batch_size {batch} is no multiple of negative_group {group}"
    elif view.num_groups % micro_batches:
        yield f"the {view.num_groups} negative groups must divide evenly into {micro_batches} micro_batches"
    elif view.num_groups // micro_batches < world_size:
        yield f"each of {world_size} ranks needs a negative group, the batch has only {view.num_groups}"
    elif rows % view.num_groups or rows > batch:
        yield f"matching_rows {rows} is no multiple of the {view.num_groups} negative groups, or above {batch}"
