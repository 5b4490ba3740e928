"""The configuration of a pre-training run: one frozen tree, and the rules between its parts. No torch.

The rules of a part stand beside the part; `cclm.recipe` reads the tree from files and command lines and asks them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from cclm.data.config import DataConfig, Views, rank_errors
from cclm.engine.ds_config import EngineFacts
from cclm.engine.options import OptimizerConfig
from cclm.errors import ConfigError
from cclm.model.options import ModelOptions
from cclm.objectives.options import ObjectiveConfig
from cclm.ops.options import KernelConfig
from cclm.pretrained.options import StartConfig
from cclm.types import LocalPath, Positive, View


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


Checkpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True, kw_only=True)
class ActivationCheckpointing:
    """What each encoder keeps for the backward pass; no number changes. "none": everything; "selective": of every
    second block its input only, "full": of every block, which is then computed twice."""

    vision: Checkpointing = "none"
    """The image encoder."""
    text: Checkpointing = "none"
    """The text encoder."""
    fusion: Checkpointing = "none"
    """The fusion encoder."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. Everything that decides step k is in here."""

    run_folder: LocalPath
    """Where the run lives; started again with the same folder, it resumes."""
    views: Views
    """The kinds of pairs to learn from, by name; null takes one away that stands in a recipe."""
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
    activation_checkpointing: ActivationCheckpointing = field(default_factory=ActivationCheckpointing)
    """Less memory for more time."""
    engine: Literal["deepspeed", "plain"] = "deepspeed"
    """"plain" is the one-process twin, for debugging."""
    deepspeed: LocalPath = "ds_configs/zero3_cpu.json"
    """DeepSpeed JSON, a path or the name of one in ds_configs/; what our configuration also knows is "auto" in it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Parameter precision of the forward pass."""
    kernels: KernelConfig = field(default_factory=KernelConfig)
    """What computes attention, norms, losses and updates; the defaults take the best that is there."""
    seed: int = 42
    """Seed of initialisation, sample order, masks, crops and draws."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; "auto" takes a GPU if there is one."""

    @property
    def steps(self) -> int:
        """Optimizer updates in total."""
        return self.optimizer.total_steps

    def validation_errors(self) -> Iterator[str]:
        """Yield what contradicts between the parts; each sentence begins with a key."""
        if not self.views:
            yield "views: none is given"
        if self.engine == "plain" and self.precision != "fp32":
            yield f"precision: engine plain runs in fp32, not {self.precision}"
        turns = [
            name
            for name, view in self.views.items()
            if view.takes_turns_with and view.takes_turns_with[0] in self.views
        ]
        if self.data.schedule == "alternate" and len(turns) > 1:
            yield f"data.schedule: one view can take turns with another, not {len(turns)} ({', '.join(turns)})"
        placed = [name for name, view in self.views.items() if "boxes" in view.trains]
        if self.model.vision.keep_patches < 1 and placed:
            yield f"model.vision.keep_patches: must be 1 with views whose texts are about places ({', '.join(placed)})"
        for name, view in self.views.items():
            for error in view.model_errors(self.model, self.data.pad_multiple):
                yield f"views.{name}.{error}"

    def engine_facts(self, world_size: int) -> EngineFacts:
        """Return what DeepSpeed's JSON must agree with."""
        first = next(iter(self.views.values()))
        return EngineFacts(
            micro_batch_size=first.batch_size // self.data.micro_batches // world_size,
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
    """Name of the view that reads it."""
    holds: View
    """What its records must be."""
    path: str
    """Folder or address."""


def named_sets(views: Views) -> Iterator[NamedSet]:
    """Yield every shard set of every view, in the order that numbers them."""
    for name, view in views.items():
        for source, settings in view.ordered_sources.items():
            key = f"views.{name}.sources.{source}.path"
            yield NamedSet(key=key, view=name, holds=view.record_view, path=settings.path)


def validation_errors_for(config: RunConfig, world_size: int) -> list[str]:
    """Return why so many ranks cannot run this configuration, a sentence each, which begins with a key."""
    found = list(rank_errors(config.views, config.data, world_size))
    if config.engine == "plain" and world_size > 1:
        found.append(f"engine: plain is one process, not {world_size} ranks; use engine: deepspeed, or no launcher")
    return found


def validate_ranks(config: RunConfig, world_size: int) -> None:
    """Raise one ConfigError with everything that keeps so many ranks from running this configuration."""
    if problems := validation_errors_for(config, world_size):
        raise ConfigError(
            where="configuration",
            expected=f"batches for {world_size} ranks",
            problems=problems,
            do="Change the batches or the number of ranks; nothing was started.",
        )
