"""What a view is: the protocol that each of `cclm/views/*` fills, and what a training step gives it and gets back.

    shard sets ─► source ─► ViewBatch ─► texts, masked texts, images ─► encoders (one call each, all views together)
                                                                            │
    Contribution ◄── view.contribute ◄── EncodedView ◄──────────────────────┘
        ├─ contrasts   pairs of sides for the contrastive losses
        ├─ pairing     which text belongs to which memory: positives, for which the step draws hard negatives
        ├─ masked      rows for the fusion encoder and the masked-LM head
        └─ located     rows for the fusion encoder and a head of the view's own

A view never runs a module that another view runs, too, and talks to no rank: under ZeRO-3 each module runs once per
step, so the step does both for all views at once (`cclm/train/step.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cclm.data.batch import ViewBatch
from cclm.data.config import DataConfig, ViewConfig
from cclm.data.loader import StepDataset
from cclm.data.source import NoSamples, SampleSource
from cclm.data.tokens import TextTokenizer
from cclm.model.modeling_cclm import CCLMModel
from cclm.objectives.options import ObjectiveConfig

States = tuple[Tensor, Tensor]
"""(states, mask) of texts or images."""


@dataclass(frozen=True, kw_only=True)
class FusionRows:
    """Rows for the fusion encoder: a text that asks, and a memory that answers (None: it asks itself only)."""

    query: States
    """(F, L, D), (F, L)."""
    memory: States | None = None
    """(M, N, D), (M, N)."""
    memory_row_F: Int[Tensor, " f *n"] | None = None
    """Which of the memories each text reads, or which n of them."""

    def in_passes(self, num_memories: int) -> FusionRows:
        """Return rows for a fusion encoder that reads so many memories at once: all of a row's n, or one after another,
        each in a pass of its own (F rows with the first ones, F with the second, …)."""
        if self.memory_row_F is None or self.memory_row_F.ndim == 1 or num_memories > 1:
            return self
        number = self.memory_row_F.shape[1]
        states, mask = self.query
        query = states.repeat(number, 1, 1), mask.repeat(number, 1)
        return replace(self, query=query, memory_row_F=self.memory_row_F.T.reshape(-1))

    @property
    def count(self) -> int:
        """F."""
        return self.query[0].shape[0]


def stop_gradient(values: Tensor) -> Tensor:
    """The same values with a gradient of zero. Not `detach`: under ZeRO-3 a module whose inputs need no gradient has
    its parameters released before its own backward (DeepSpeed 0.19: "size of tensor a (0) must match")."""
    return values * 0.0 + values.detach()


def select(states: States, row_F: Int[Tensor, " f"]) -> States:
    """Pick rows of states and mask."""
    return states[0][row_F], states[1][row_F]


def memories_of(parts: Sequence[FusionRows]) -> tuple[list[States], Tensor, Tensor | None] | None:
    """Return the memories of all parts, each once; which of them each row reads; which rows read any.

    None if no row reads. Rows without a memory name the first one, which the fusion encoder then does not look at; the
    last of the three is None if there are no such rows.
    """
    first_rows, memories, num_memories, rows, reads = (
        dict[int, int](),
        list[States](),
        0,
        list[Tensor](),
        list[Tensor](),
    )
    for part in parts:
        row_F = torch.zeros(part.count, dtype=torch.int64, device=part.query[1].device)
        reads.append(torch.full_like(row_F, part.memory is not None, dtype=torch.bool))
        if part.memory is not None:
            assert part.memory_row_F is not None, "a memory, and which of its rows are read"
            if id(part.memory[0]) not in first_rows:
                first_rows[id(part.memory[0])] = num_memories
                memories.append(part.memory)
                num_memories += part.memory[0].shape[0]
            row_F = part.memory_row_F + first_rows[id(part.memory[0])]
        rows.append(row_F)
    if not memories:
        return None
    is_mixed = any(part.memory is None for part in parts)
    return memories, torch.cat(rows), torch.cat(reads) if is_mixed else None


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """Texts, or what stands for a view's images, after the encoder and the projection."""

    states: States
    """(B, L, D), (B, L): what the fusion encoder sees."""
    feature_BE: Float[Tensor, "b e"]
    """Of a model without projections: (B, 0)."""


@dataclass(frozen=True, kw_only=True)
class EncodedImages(EncodedRows):
    """Rows that are images, or parts of them."""

    whole_BND: Float[Tensor, "_b n d"]
    """The images themselves."""


@dataclass(frozen=True, kw_only=True)
class EncodedView:
    """A view's batch after the encoders."""

    texts: tuple[EncodedRows, ...]
    """In the order of `ViewBatch.texts`."""
    masked: States
    """`ViewBatch.masked`: (F, L, D), (F, L); of a model without masked-LM head no rows."""
    images: EncodedImages | None


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a contrastive loss."""

    feature_NE: Float[Tensor, "n e"]
    identity_N: Int[Tensor, " n"]
    """Equal values are positives of each other."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A contrastive loss: pull two sides together where they show the same, and apart elsewhere."""

    name: str
    """Of the loss: "itc" or "ttc"."""
    weight: float
    pairs: Sequence[tuple[Side, Side]]
    """The loss is the mean over these; the first side of each has a row for each row of the view."""
    temperature_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """What can be matched with what: for each of the view's R rows a memory and a query that belong together."""

    name: str
    """Of the loss: "itm" or "ttm"."""
    weight: float
    memory: EncodedRows
    query: EncodedRows
    identity_R: Int[Tensor, " r"]
    """Rows with equal values are never each other's negatives."""
    temperature_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RowLoss:
    """A loss of each of some rows, float32."""

    loss_F: Float[Tensor, " f"]
    weight: float | None
    """In the total; None: only written down, as an accuracy is."""


HeadLosses: TypeAlias = Callable[[CCLMModel, Tensor, Tensor], Mapping[str, RowLoss]]
"""(model, fused states, their mask) → losses by name; runs the head once."""


@dataclass(frozen=True, kw_only=True)
class LocatedRows:
    """Rows for a head of the view's own."""

    rows: FusionRows
    counted_F: Float[Tensor, " f"]
    """1 or 0: whether a row counts in the means."""
    losses: HeadLosses
    is_pooled: bool = False
    """Whether they look at fused states by `pool_states` only; then those that it does not read are not computed."""


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What a view gives to a step. Names of losses stand without the view's name."""

    contrasts: Sequence[Contrast] = ()
    """Means over the global batch, always."""
    pairing: Pairing | None = None
    """None: no matching (TLM)."""
    masked: FusionRows | None = None
    """The batch's masked texts with their true memories; None: nothing is masked."""
    located: LocatedRows | None = None
    """None: the view has no head of its own."""
    taught: Mapping[str, Float[Tensor, "_n _e"]] = field(default_factory=dict)
    """Features by side, of what a teacher may have features of its own (`ViewBatch.taught`)."""


ConfigType = TypeVar("ConfigType", bound=ViewConfig)
BatchType = TypeVar("BatchType", bound=ViewBatch)


class View(ABC, Generic[ConfigType, BatchType]):
    """One kind of pair that the model learns from: where its data come from, and what it adds to a step.

    `name`: in the configuration, the log, the ledger and the counters.
    """

    source: ClassVar[type[Any]]
    """The `SampleSource` of its data."""

    def __init__(self, name: str, config: ConfigType) -> None:
        self.name, self.config = name, config

    def open(self, tokenizer: TextTokenizer, seed: int, data: DataConfig) -> SampleSource[ConfigType, Any]:
        """Open the view's data (ConfigError: they do not fit the settings; DataError: one of them is no shard set)."""
        source: SampleSource[ConfigType, Any] = self.source(
            self.name, self.config, tokenizer, seed, data.cache, data.pad_multiple
        )
        return source

    def image_states(self, model: CCLMModel, batch: BatchType, whole_BND: Tensor) -> States:
        """Return what stands for each row, from the states of the batch's images: here the images themselves."""
        return whole_BND, torch.ones(whole_BND.shape[:2], dtype=torch.bool, device=whole_BND.device)

    @abstractmethod
    def contribute(self, objectives: ObjectiveConfig, batch: BatchType, encoded: EncodedView) -> Contribution:
        """Say what is contrasted, and what goes through the fusion encoder and its heads."""


def open_dataset(
    views: Mapping[str, View[Any, Any]],
    config: DataConfig,
    tokenizer: TextTokenizer,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> StepDataset:
    """Open the data of views for one rank.

    Raises:
        ConfigError: a set of another view, an empty one, language weights that no source has.
    """
    sources: dict[str, SampleSource[Any, Any]] = {}
    for name, view in views.items():
        if view.config.sources or view.config.record_view is None:
            sources[name] = view.open(tokenizer, seed, config)
        else:
            sources[name] = NoSamples(name, view.config, tokenizer, seed, pad_multiple=config.pad_multiple)
    return StepDataset(sources, {name: view.config for name, view in views.items()}, config, seed, rank, world_size)
