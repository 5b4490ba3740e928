"""The configuration of a pre-training run: one frozen tree, checked as a whole before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cclm.data.config import DataConfig
from cclm.engine.optimizer import OptimizerConfig
from cclm.model.configuration_cclm import ModelOptions
from cclm.pretrained.initialise import StartConfig


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights and options of the losses (spec: CCLM section 3; the defaults are the published values)."""

    itc_weight: float = 1.0
    """Image-text contrastive loss."""
    itm_weight: float = 1.0
    """Image-text matching loss."""
    ttc_weight: float = 1.0
    """Text-text contrastive loss."""
    ttm_weight: float = 1.0
    """Text-text matching loss."""
    mlm_weight: float = 1.0
    """Conditional masked-language-modelling loss, both views."""
    box_weight: float = 1.0
    """L1 distance of boxes (regions)."""
    giou_weight: float = 1.0
    """1 - GIoU of boxes (regions)."""
    means: Literal["global", "per_rank"] = "global"
    """What a loss is a mean over. "global": the samples (or masked tokens, or boxes) of the global batch, so that the
    number of ranks changes nothing; "per_rank": those of each rank, then averaged over the ranks, as published."""
    text_temperature_factor: float = 1.0
    """The text view divides its similarities by temperature x this. The temperature itself is shared by the views;
    above 1, TTC keeps pulling translations together after they already rank first (docs/log.md)."""
    label_smoothing: float = 0.0
    """Share of the contrastive target spread evenly over all candidates."""
    contrastive_grad_scale: float = 1.0
    """Factor on the gradient of the contrastive losses into the features; 1/8 reproduces the published 8-GPU runs."""
    hardness: float = 1.0
    """Hard negatives are drawn with weights softmax(hardness x similarity / temperature): 1 as published, 0 uniform."""
    hardness_start_step: int = 0
    """With a ramp: draws are uniform up to this step. A matching head learns nothing from hard negatives of untrained
    encoders (docs/log.md)."""
    hardness_full_step: int = 0
    """With a ramp: the hardness rises linearly from `hardness_start_step` and reaches its value here; 0: no ramp."""
    fusion_warmup_steps: int = 0
    """Steps in which the fusion losses train only the fusion encoder and the heads; the encoders follow the
    contrastive losses alone."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save."""

    every_steps: int = 1000
    """Save after every so many steps, and always after the last."""
    keep: int = 2
    """How many complete checkpoints to keep."""


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """What to write down."""

    every_steps: int = 50
    """Write metrics after every so many steps."""
    tensorboard: bool = True
    """Also write TensorBoard events."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. Everything that decides step k is in here."""

    run_folder: str
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
    deepspeed: str = "ds_configs/zero3_cpu.json"
    """DeepSpeed JSON; what our configuration also knows is "auto" in it."""
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
