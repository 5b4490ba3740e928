"""The configuration of a pre-training run: one frozen tree, checked as a whole before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cclm.data.config import DataConfig, Views
from cclm.engine.optimizer import OptimizerConfig
from cclm.model.configuration_cclm import ModelOptions
from cclm.objectives.options import ObjectiveConfig
from cclm.pretrained.initialise import StartConfig


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
    views: Views
    """The kinds of pairs to learn from, by name (`cclm/views/table.py`): image_text, regions, text_pair."""
    data: DataConfig
    """How to read them."""
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
