"""The configuration of a pre-training run: one frozen tree, and the rules between its parts. No torch.

The rules of a part stand beside the part; `cclm.recipe` reads the tree from files and command lines and asks them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from cclm.data.config import DataConfig, rank_complaints
from cclm.engine.ds_config import EngineFacts
from cclm.engine.options import OptimizerConfig
from cclm.errors import ConfigError
from cclm.files.hints import noted_texts
from cclm.model.options import ModelOptions
from cclm.pretrained.options import StartConfig
from cclm.types import IMAGE_SET, PAIR_SET, Bounds, Count, NotNegative, PathText, Positive, Share


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights and options of the losses (spec: CCLM section 3; the defaults are the published values)."""

    itc_weight: NotNegative = 1.0
    """Image-text contrastive loss."""
    itm_weight: NotNegative = 1.0
    """Image-text matching loss."""
    ttc_weight: NotNegative = 1.0
    """Text-text contrastive loss."""
    ttm_weight: NotNegative = 1.0
    """Text-text matching loss."""
    mlm_weight: NotNegative = 1.0
    """Conditional masked-language-modelling loss, both views."""
    box_weight: NotNegative = 1.0
    """L1 distance of boxes (regions)."""
    giou_weight: NotNegative = 1.0
    """1 - GIoU of boxes (regions)."""
    means: Literal["global", "per_rank"] = "global"
    """What a loss is a mean over. "global": the samples (or masked tokens, or boxes) of the global batch, so that the
    number of ranks changes nothing; "per_rank": those of each rank, then averaged over the ranks, as published."""
    text_temperature_factor: Annotated[float, Bounds(above=0)] = 1.0
    """The text view divides its similarities by temperature x this. The temperature itself is shared by the views;
    above 1, TTC keeps pulling translations together after they already rank first (docs/log.md)."""
    label_smoothing: Share = 0.0
    """Share of the contrastive target spread evenly over all candidates."""
    contrastive_grad_scale: NotNegative = 1.0
    """Factor on the gradient of the contrastive losses into the features; 1/8 reproduces the published 8-GPU runs."""
    hardness: NotNegative = 1.0
    """Hard negatives are drawn with weights softmax(hardness x similarity / temperature): 1 as published, 0 uniform."""
    hardness_start_step: Count = 0
    """With a ramp: draws are uniform up to this step. A matching head learns nothing from hard negatives of untrained
    encoders (docs/log.md)."""
    hardness_full_step: Count = 0
    """With a ramp: the hardness rises linearly from `hardness_start_step` and reaches its value here; 0: no ramp."""
    fusion_warmup_steps: Count = 0
    """Steps in which the fusion losses train only the fusion encoder and the heads; the encoders follow the
    contrastive losses alone."""

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        start, full = self.hardness_start_step, self.hardness_full_step
        if full and start > full:
            yield f"hardness_start_step {start} is after hardness_full_step {full}"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save."""

    every_steps: Positive = 1000
    """Save after every so many steps, and always after the last."""
    keep: Positive = 2
    """How many complete checkpoints to keep."""


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """What to write down."""

    every_steps: Positive = 50
    """Write metrics after every so many steps."""
    tensorboard: bool = True
    """Also write TensorBoard events."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. Everything that decides step k is in here."""

    run_folder: PathText
    """Where the run lives; started again with the same folder, it resumes."""
    data: DataConfig
    """What to read."""
    optimizer: OptimizerConfig
    """How to update; `total_steps` is the length of the run."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """The network; its vocabulary size and pad id are taken from the tokenizer."""
    start: StartConfig = field(default_factory=StartConfig)
    """Weights that a fresh run starts from."""
    objectives: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Loss weights."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Metrics."""
    engine: Literal["deepspeed", "plain"] = "deepspeed"
    """"plain" is the one-process twin, for debugging."""
    deepspeed: PathText = "ds_configs/zero3_cpu.json"
    """DeepSpeed JSON, a path or the name of one in ds_configs/; what our configuration also knows is "auto" in it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Parameter precision of the forward pass."""
    seed: int = 42
    """Seed of initialisation, sample order, masks, crops and draws."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; "auto" takes a GPU if there is one."""

    @property
    def steps(self) -> int:
        """Optimizer updates in total."""
        return self.optimizer.total_steps

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts between the parts; each begins with a key."""
        if self.engine == "plain" and self.precision != "fp32":
            yield f"precision: engine plain runs in fp32, not {self.precision}"
        yield from _size_errors(self)

    @property
    def uses_all_parameters(self) -> bool:
        """Whether every update reaches every parameter: all views in one, pictures among them, boxes if predicted."""
        data = self.data
        num_views = sum(view is not None for view in (data.image_text, data.text_pair, data.regions))
        has_pictures = data.image_text is not None or data.regions is not None
        has_boxes = data.regions is not None or not self.model.box_head
        return has_pictures and has_boxes and (data.schedule == "joint" or num_views == 1)

    def engine_facts(self, world_size: int) -> EngineFacts:
        """Return what DeepSpeed's JSON must agree with."""
        samples = self.data.image_text or self.data.text_pair or self.data.regions
        assert samples is not None, "the rules refuse a configuration without data"
        return EngineFacts(
            micro_batch_size=samples.batch_size // self.data.micro_batches // world_size,
            accumulation_steps=self.data.micro_batches,
            world_size=world_size,
            max_grad_norm=self.optimizer.max_grad_norm,
            precision=self.precision,
        )


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """A shard set that a configuration names."""

    key: str
    """Dotted, in the whole configuration."""
    view: str
    """Of the configuration: "image_text", "regions" or "text_pair"."""
    kind: str
    """What it must be: `IMAGE_SET` or `PAIR_SET`."""
    place: str
    """Folder or URL."""


def named_sets(data: DataConfig) -> Iterator[NamedSet]:
    """Yield every shard set of every view, in the order of the configuration."""
    for key, note, place in noted_texts(data, DataConfig, "data"):
        if note in (IMAGE_SET, PAIR_SET):
            yield NamedSet(key=key, view=key.split(".")[1], kind=note, place=place)


def rank_errors(config: RunConfig, world_size: int) -> list[str]:
    """Why so many ranks cannot run this configuration, a sentence each."""
    found = [f"data.{text}" for text in rank_complaints(config.data, world_size)]
    if config.engine == "plain" and world_size > 1:
        found.append(f"engine: plain is one process, not {world_size} ranks; use engine: deepspeed, or no launcher")
    return found


def validate_ranks(config: RunConfig, world_size: int) -> None:
    """Raise one ConfigError with everything that keeps so many ranks from running this configuration."""
    if problems := rank_errors(config, world_size):
        raise ConfigError(
            where="configuration",
            expected=f"batches for {world_size} ranks",
            problems=problems,
            do="Change the batches or the number of ranks; nothing was started.",
        )


def _size_errors(config: RunConfig) -> Iterator[str]:
    """Where the data and the network must have the same size; sizes of a named source are not known yet."""
    data, vision, text = config.data, config.model.vision, config.model.text
    views = {"image_text": data.image_text, "regions": data.regions, "text_pair": data.text_pair}
    for name, pictures in (("image_text", data.image_text), ("regions", data.regions)):
        if pictures is not None and vision.source is None and pictures.transform.size != vision.image_size:
            size = pictures.transform.size
            yield f"data.{name}.transform.size {size} is not model.vision.image_size {vision.image_size}"
    longest = text.max_positions - text.position_offset
    for name, view in views.items():
        if view is None or text.source is not None:
            continue
        length, multiple = view.max_tokens, max(data.pad_multiple, 1)
        if length > longest:
            yield f"data.{name}.max_tokens {length} exceeds the {longest} positions of model.text"
        elif (padded := -(-length // multiple) * multiple) > longest:
            yield f"data.{name}: {padded} positions with data.pad_multiple, model.text has {longest}"
        if view is data.text_pair and data.text_pair.tlm and length <= longest < 2 * length - 1:
            yield f"data.text_pair.tlm needs {2 * length - 1} positions (2 · max_tokens - 1), model.text has {longest}"
    if data.regions is None:
        return
    if not config.model.box_head:
        yield "data.regions needs model.box_head: true"
    if vision.source is None and vision.stride and data.regions.patch_grid * vision.stride != vision.image_size:
        grid = vision.image_size // vision.stride
        yield f"data.regions.patch_grid {data.regions.patch_grid} is not the image tower's grid, {grid} on a side"
