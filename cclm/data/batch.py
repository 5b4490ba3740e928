"""What a training step receives. Built on the CPU by the views; letters as in docs/shapes.md.

All randomness of a step is drawn here, seeded by (seed, epoch, position), so that the model and the objectives
are deterministic functions of a batch: masks, crops, the choice of caption, and the Gumbel noise that turns
hard-negative weights into draws (argmax of log-weight + noise is a draw from the weights).

Order of samples: a rank's samples are consecutive samples of the global batch (of a micro-batch of it), as evenly as
they go. Hard negatives are drawn inside *negative groups*: blocks of G consecutive rows, which may span ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

SelfType = TypeVar("SelfType", bound="TensorRecord")


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """A dataclass of tensors that can be moved and pinned as a whole."""

    def to(self: SelfType, device: torch.device | str, non_blocking: bool = True) -> SelfType:
        """Return a copy with every tensor (nested ones too) on `device`."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: SelfType) -> SelfType:
        """Return a copy in pinned memory."""
        return self.each(lambda tensor: tensor.pin_memory())

    def each(self: SelfType, function: Callable[[Tensor], Tensor]) -> SelfType:
        """Return a copy with every tensor (nested ones too) replaced by `function` of it."""
        changes: dict[str, object] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changes[item.name] = function(value)
            elif isinstance(value, TensorRecord):
                changes[item.name] = value.each(function)
            elif isinstance(value, tuple) and value and isinstance(value[0], TensorRecord):
                changes[item.name] = tuple(part.each(function) for part in value)
            elif isinstance(value, Mapping):
                changes[item.name] = {
                    key: part.each(function) if isinstance(part, TensorRecord) else function(part)
                    for key, part in value.items()
                }
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """A sample that could not be used, why, and where it stands."""

    view: str
    source: str
    """Path of the shard set."""
    shard: str
    """File name of the tar."""
    offset: int
    """Byte offset of the sample's first member in the tar."""
    key: str
    reason: str
    """The short word it is counted by, for example "image_truncated"."""
    message: str


@dataclass(frozen=True, kw_only=True)
class Tokens(TensorRecord):
    """Token ids padded to the longest text of the batch."""

    ids_BL: Int[Tensor, "b l"]
    """int64 ids; padding holds the tokenizer's pad id."""
    mask_BL: Bool[Tensor, "b l"]
    """True where a real token stands."""
    num_tokens: int | None = None
    """How many real tokens there are, so that no GPU has to be asked; None: not known."""


@dataclass(frozen=True, kw_only=True)
class MaskedTokens(TensorRecord):
    """Texts with some tokens replaced, and what was there."""

    tokens: Tokens
    slot_T: Int[Tensor, " t"]
    """Where to predict: flat indices row · l + column into `tokens.ids_BL`."""
    label_T: Int[Tensor, " t"]
    """The original token id at each slot."""


@dataclass(frozen=True, kw_only=True)
class PixelScale:
    """How bytes become the network's input: (byte / 255 − mean) / std, for each channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, bytes_BCHW: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalise on the device where the bytes are: float32."""
        mean_C, std_C = (_by_channel(values, bytes_BCHW.device) for values in (self.mean, self.std))
        floats_BCHW = bytes_BCHW.to(torch.float32, memory_format=torch.contiguous_format)
        return floats_BCHW.mul_(1.0 / (255.0 * std_C)).sub_(mean_C / std_C)


@cache
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers of the channels, kept on the device: a copy of pageable memory in each step would wait for it."""
    return torch.tensor(values, device=device)[:, None, None]


@dataclass(frozen=True, kw_only=True)
class Taught(TensorRecord):
    """What a teacher says about one side of a view's rows."""

    feature_NT: Float[Tensor, "n t"]
    """Unit vectors, float16; zeros where it has none."""
    row_N: Int[Tensor, " n"]
    """Number of each in the global batch; -1 where it has no feature."""


@dataclass(frozen=True, kw_only=True)
class ViewBatch(TensorRecord):
    """One rank's share of one view in a step: what every view has. The rest is the view's own (`cclm/views`)."""

    text: Tokens
    """Texts that are encoded and projected, beside the masked ones."""
    row_R: Int[Tensor, " r"]
    """Number of each row in the view's global batch."""
    matching_row_F: Int[Tensor, " f"]
    """The rows (indices into R) whose pairs also go through the fusion encoder as positives: at least one, or none of a
    view that matches nothing."""
    counted_F: Float[Tensor, " f"]
    """1; 0 for a row that only stands in, on a rank that holds none: every rank must run every module."""
    noise_second_FG: Float[Tensor, "f g"]
    """Gumbel noise to draw, for each F row's first side, one negative second side of its negative group (G rows); of a
    group above `LARGEST_GROUP_WITH_NOISE` rows one uniform number (`cclm.ops.hard_negatives`), float64."""
    noise_first_FG: Float[Tensor, "f g"]
    """The same to draw, for each F row's second side, one negative first side."""
    masked: MaskedTokens
    """Masked texts of the F rows, in that order."""
    ledger_S: Int[Tensor, " s"]
    """64-bit hash of what each sample is and what was drawn of it: what the ledger adds up."""
    taught: Mapping[str, Taught] = field(default_factory=dict)
    """What the view's teacher says, by side ("text", "image", …); without a teacher nothing."""

    @property
    def texts(self) -> tuple[Tokens, ...]:
        """All such texts."""
        return (self.text,)

    @property
    def images(self) -> Tensor | None:
        """Images to encode, (B, 3, height, width), normalised; None: the view has none."""
        return None

    def normalised(self: SelfType) -> SelfType:
        """Return the batch with normalised floats in place of bytes, on the device where they are."""
        return self


@dataclass(frozen=True, kw_only=True)
class Batch(TensorRecord):
    """One rank's share of one step."""

    step: int
    """The step k, counted from 0."""
    views: Mapping[str, ViewBatch]
    """The views of this step (or update), in the order of the configuration's table."""
    update: int = 0
    """Which of the step's updates this is the share of, counted from 0 (schedule "alternate" has several)."""
    part: int = 0
    """Which of the step's micro-batches this is, counted from 0."""
    num_parts: int = 1
    shared: Mapping[str, Tensor] | None = None
    """What all ranks and micro-batches of the update know of each other (`cclm.train.sharing`); None: not asked yet."""
    bad_samples: tuple[BadSample, ...] = ()
    """Samples of this rank's share that could not be used and were replaced."""
    rest: tuple[Batch, ...] = ()
    """The step's further micro-batches, each with its own share of every view (`DataConfig.micro_batches`)."""
    samples_seen: tuple[tuple[str, int], ...] = ()
    """What this rank's share shows, by source and language (`cclm.data.counts`)."""

    @property
    def parts(self) -> tuple[Batch, ...]:
        """All micro-batches of the step."""
        return (replace(self, rest=()), *self.rest)

    def normalised(self) -> Batch:
        """Return a copy whose images are normalised floats, on the device where they are."""
        return replace(self, views={name: view.normalised() for name, view in self.views.items()})
