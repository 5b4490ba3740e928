"""The settings of the data, and every complaint about them at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from cclm.data.image import ImageTransformConfig
from cclm.data.masking import MaskingConfig
from cclm.data.mix_plan import MixConfig, mix_complaints
from cclm.data.region_config import RegionDataConfig, region_complaints
from cclm.data.schedule import Schedule
from cclm.data.tokens import Normalise
from cclm.errors import ConfigError
from cclm.shardfile.cache import CacheConfig
from cclm.shardfile.fetch import is_remote


@dataclass(frozen=True, kw_only=True)
class ImageTextDataConfig:
    """Images with captions."""

    shards: tuple[str, ...]
    """Folders of image-text shard sets; each is one source of the mixture."""
    weights: tuple[float, ...] | None = None
    """Proportions of the sources; None: the proportions of their sizes."""
    mix: MixConfig = field(default_factory=MixConfig)
    """How the proportions change, and how often a source is repeated."""
    batch_size: int = 128
    """Images per step, over all ranks."""
    negative_group: int = 64
    """G: hard negatives are drawn inside blocks of G consecutive samples; a rank holds whole blocks, as evenly as they
    go, and so at least one."""
    matching_rows: int = 32
    """Pairs per step, over all ranks, that also go through the fusion encoder as positives; the first ones of each
    negative group, equally many of each."""
    num_lanes: int = 8
    """Lanes of the stream, any number; with a large common factor with the batch size each rank reads lanes (and so
    shards) of its own. Part of the order of samples, so it stays when the number of ranks changes."""
    window: int = 1024
    """Samples of a lane that are shuffled together."""
    languages: tuple[str, ...] | None = None
    """Caption languages to use; None: all that a record has."""
    first_caption_probability: float | None = None
    """Probability of the first caption of a language's list, the others sharing the rest; None: all alike."""
    captions_per_image: int = 1
    """1, or 2: a second caption in another language joins the contrastive losses (published as `sample_2_captions`)."""
    max_tokens: int = 40
    """Longest text in tokens, with `<s>` and `</s>`."""
    max_words: int | None = None
    """Longest text in space-separated words; None: no limit."""
    masking: MaskingConfig = field(default_factory=lambda: MaskingConfig(max_masks=12))
    """How captions are masked."""
    transform: ImageTransformConfig = field(default_factory=ImageTransformConfig)
    """How pictures are resized, augmented and normalised."""


@dataclass(frozen=True, kw_only=True)
class TextPairDataConfig:
    """Sentences with translations."""

    shards: tuple[str, ...]
    """Folders of text-pair shard sets; each is one source of the mixture."""
    weights: tuple[float, ...] | None = None
    """Proportions of the sources; None: the proportions of their sizes."""
    mix: MixConfig = field(default_factory=MixConfig)
    """How the proportions change, and how often a source is repeated."""
    batch_size: int = 128
    """Samples per step, over all ranks. A sample is one sentence (a group) with some of its translations."""
    pairs_per_sample: int = 1
    """K: translations drawn for each sentence; with repetition only if it has fewer."""
    negative_group: int = 64
    """G: hard negatives are drawn inside blocks of G consecutive samples."""
    matching_rows: int = 32
    """Samples per step, over all ranks, whose first pair goes through the fusion encoder as a positive."""
    swap_probability: float = 0.5
    """Probability that the translation, not the shared sentence, plays the image's role in the fusion encoder."""
    tlm: bool = False
    """Translation language modelling in place of matching and conditional masked-LM (published as `use_tlm`): both
    sentences in one text of up to 2 · max_tokens - 1 tokens; raise `masking.max_masks` with it."""
    max_tokens: int = 64
    """Longest text in tokens, with `<s>` and `</s>`."""
    max_words: int | None = None
    """Longest text in space-separated words; None: no limit."""
    masking: MaskingConfig = field(default_factory=lambda: MaskingConfig(max_masks=20))
    """How sentences are masked."""
    num_lanes: int = 8
    """Lanes of the stream, as for images."""
    window: int = 1024
    """Groups of a lane that are shuffled together. A rank keeps 32 decoded blocks: window · pairs per group · its
    lanes should not span many more."""
    length_buckets: int = 1
    """Each window is dealt out in so many parts of similar length, so that a batch needs little padding; 1: none. Reads
    a whole window's blocks when it begins; for local shards."""
    cache_groups: int = 0
    """Decoded groups kept in each process; 0 for none. For corpora that fit into memory."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Everything that decides what stands in a batch, but the seed."""

    tokenizer: str
    """Folder with tokenizer.json (or XLM-RoBERTa's SentencePiece file), or a model's name on the Hugging Face hub."""
    normalise: Normalise = "none"
    """Preparation of texts before the tokenizer: `cclm` as published (lower case, no ASCII punctuation), or none."""
    image_text: ImageTextDataConfig | None = None
    """Images with captions; None: no image steps."""
    text_pair: TextPairDataConfig | None = None
    """Sentence pairs; None: no text steps."""
    regions: RegionDataConfig | None = None
    """Boxes of images with texts; None: no region steps. Needs a model with `box_head`."""
    schedule: Schedule = "joint"
    """"joint": every step holds all views and makes one update (CCLM-X2VLM; the default). "alternate": one update for
    each view of a step, and regions or images by a coin (CCLM-3M/4M)."""
    region_probability: float = 0.5
    """"alternate" with regions and images: the share of steps that hold regions."""
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


def equal_shares(config: DataConfig, world_size: int) -> bool:
    """Whether every rank gets equally many samples of each view."""
    views = [view for view in (config.image_text, config.text_pair, config.regions) if view is not None]
    return all(view.batch_size // view.negative_group // config.micro_batches % world_size == 0 for view in views)


def validate(config: DataConfig, world_size: int = 1) -> None:
    """Raise one ConfigError that lists everything wrong with the config for this number of ranks."""
    complaints = complaints_about(config, world_size)
    if complaints:
        raise ConfigError(
            expected="a data config without contradictions",
            got="; ".join(complaints),
            do="Correct these settings.",
        )


def complaints_about(config: DataConfig, world_size: int = 1) -> list[str]:
    """Everything wrong with the config, a sentence each."""
    complaints = []
    if config.image_text is None and config.text_pair is None and config.regions is None:
        complaints.append("none of image_text, text_pair and regions is given")
    if config.schedule not in ("joint", "alternate"):
        complaints.append(f"schedule must be joint or alternate, is {config.schedule!r}")
    if not 0 <= config.region_probability <= 1:
        complaints.append(f"region_probability must be between 0 and 1, is {config.region_probability}")
    if not 0 <= config.bad_sample_limit <= 1:
        complaints.append(f"bad_sample_limit must be between 0 and 1, is {config.bad_sample_limit}")
    if config.cache.size_bytes < 1 or config.cache.attempts < 1 or config.cache.prefetch_steps < 0:
        complaints.append("cache: size_bytes and attempts must be at least 1, prefetch_steps at least 0")
    if config.num_workers < 0 or config.pad_multiple < 1 or config.batch_timeout_s <= 0:
        complaints.append(
            f"num_workers {config.num_workers} must be at least 0, pad_multiple {config.pad_multiple} at least 1, "
            f"batch_timeout_s {config.batch_timeout_s:g} above 0"
        )
    if config.micro_batches < 1:
        return [*complaints, f"micro_batches must be at least 1, is {config.micro_batches}"]
    if config.image_text is not None:
        complaints += _complaints("image_text", config.image_text, world_size, config.micro_batches)
        complaints += _image_complaints(config.image_text)
    if config.text_pair is not None:
        complaints += _complaints("text_pair", config.text_pair, world_size, config.micro_batches)
        buckets, remote = config.text_pair.length_buckets, any(map(is_remote, config.text_pair.shards))
        if not 1 <= buckets <= config.text_pair.window or (buckets > 1 and remote):
            complaints.append(f"text_pair.length_buckets must be 1 to window, and 1 for remote shards, is {buckets}")
        if config.text_pair.pairs_per_sample < 1:
            complaints.append(f"text_pair.pairs_per_sample must be at least 1, is {config.text_pair.pairs_per_sample}")
        if not 0 <= config.text_pair.swap_probability <= 1:
            complaints.append(
                f"text_pair.swap_probability must be between 0 and 1, is {config.text_pair.swap_probability}"
            )
    if config.regions is not None:
        complaints += _complaints("regions", config.regions, world_size, config.micro_batches)
        complaints += region_complaints(config.regions)
    return complaints


ViewConfig = ImageTextDataConfig | TextPairDataConfig | RegionDataConfig


def _complaints(name: str, view: ViewConfig, world_size: int, parts: int) -> list[str]:
    """What all views must obey."""
    found = []
    batch, group, rows, lanes = view.batch_size, view.negative_group, view.matching_rows, view.num_lanes
    if not view.shards:
        found.append(f"{name}.shards must name at least one folder")
    if view.weights is not None and len(view.weights) != len(view.shards):
        found.append(f"{name}.weights must be one for each of the {len(view.shards)} shards, are {len(view.weights)}")
    if view.weights is not None and (min(view.weights, default=1.0) < 0 or not any(view.weights)):
        found.append(f"{name}.weights must be 0 or more, not all 0, are {view.weights}")
    found += mix_complaints(name, view.mix, len(view.shards))
    if min(batch, group, rows, lanes, view.window) < 1:
        found.append(f"{name}: batch_size, negative_group, matching_rows, num_lanes and window must be at least 1")
        return found
    if batch % group:
        found.append(f"{name}.batch_size {batch} is no multiple of negative_group {group}")
    elif batch // group % parts:
        found.append(f"{name}: the {batch // group} negative groups must divide evenly into {parts} micro_batches")
    elif batch // group // parts < world_size:
        found.append(f"{name}: each of {world_size} ranks needs a negative group, the batch has only {batch // group}")
    elif rows % (batch // group) or rows > batch:
        found.append(
            f"{name}.matching_rows {rows} is no multiple of the {batch // group} negative groups, or above {batch}"
        )
    if view.max_tokens < 3 or (view.max_words is not None and view.max_words < 1):
        found.append(
            f"{name}: max_tokens must be at least 3, max_words at least 1; are {view.max_tokens} and {view.max_words}"
        )
    mask = view.masking
    if not (0 <= mask.mask_probability <= 1 and 0 <= mask.span_probability <= 1 and mask.max_masks >= 1):
        found.append(f"{name}.masking: probabilities must be between 0 and 1, max_masks at least 1; is {mask}")
    return found


def _image_complaints(view: ImageTextDataConfig) -> list[str]:
    found = []
    first, transform = view.first_caption_probability, view.transform
    if first is not None and not 0 <= first <= 1:
        found.append(f"image_text.first_caption_probability must be between 0 and 1, is {first}")
    if view.captions_per_image not in (1, 2):
        found.append(f"image_text.captions_per_image must be 1 or 2, is {view.captions_per_image}")
    if view.languages is not None and not view.languages:
        found.append("image_text.languages is empty: name at least one, or leave it out for all")
    if transform.size < 1 or min(transform.std) <= 0:
        found.append(f"image_text.transform: size and std must be positive, are {transform.size} and {transform.std}")
    if not 0 < transform.crop_area[0] <= transform.crop_area[1] <= 1:
        found.append(f"image_text.transform.crop_area must obey 0 < low ≤ high ≤ 1, is {transform.crop_area}")
    if not 0 < transform.crop_ratio[0] <= transform.crop_ratio[1]:
        found.append(f"image_text.transform.crop_ratio must obey 0 < low ≤ high, is {transform.crop_ratio}")
    shares = (transform.brightness, transform.contrast, transform.saturation, transform.flip_probability)
    if not 0 <= transform.scale < 1 or not all(0 <= share <= 1 for share in shares):
        found.append(
            "image_text.transform: scale must be below 1; brightness, contrast, saturation, flip_probability in 0 … 1"
        )
    return found
