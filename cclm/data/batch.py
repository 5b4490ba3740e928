"""What a training step receives. Built on the CPU by `cclm.data.collate`; letters as in docs/shapes.md.

All randomness of a step is drawn here, seeded by (seed, epoch, position), so that the model and the objectives
are deterministic functions of a batch: masks, crops, the choice of caption, and the Gumbel noise that turns
hard-negative weights into draws (argmax of log-weight + noise is a draw from the weights).

Order of samples: a rank's samples are consecutive samples of the global batch. Hard negatives are drawn inside
*negative groups*: blocks of G consecutive samples; a rank always holds whole groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
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
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: SelfType) -> SelfType:
        """Return a copy in pinned memory (the hook that torch's DataLoader calls)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def each(self: SelfType, function: Callable[[Tensor], Tensor]) -> SelfType:
        """Return a copy with every tensor (nested ones too) replaced by `function` of it."""
        return self._map(function)

    def _map(self: SelfType, function: object) -> SelfType:
        assert callable(function)
        changes: dict[str, object] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changes[item.name] = function(value)
            elif isinstance(value, TensorRecord):
                changes[item.name] = value._map(function)
            elif isinstance(value, tuple) and value and isinstance(value[0], TensorRecord):
                changes[item.name] = tuple(part._map(function) for part in value)
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


@dataclass(frozen=True, kw_only=True)
class MaskedTokens(TensorRecord):
    """Texts with some tokens replaced, and what was there."""

    tokens: Tokens
    """The masked copies, M rows."""
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
        mean_C = torch.tensor(self.mean, device=bytes_BCHW.device)[:, None, None]
        std_C = torch.tensor(self.std, device=bytes_BCHW.device)[:, None, None]
        floats_BCHW = bytes_BCHW.to(torch.float32, memory_format=torch.contiguous_format)
        return floats_BCHW.mul_(1.0 / (255.0 * std_C)).sub_(mean_C / std_C)


@dataclass(frozen=True, kw_only=True)
class ImageTextBatch(TensorRecord):
    """B images, each with one caption, on one rank."""

    images_BCHW: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]
    """Pictures: normalised float32, or bytes, for `Batch.normalised` on the device."""
    text: Tokens
    """Captions, B rows."""
    identity_B: Int[Tensor, " b"]
    """63-bit hash of the record's identity; equal values are positives of each other."""
    matching_row_F: Int[Tensor, " f"]
    """The samples (indices into B) whose pairs also go through the fusion encoder as positives; every negative
    group has the same number of them."""
    noise_second_FG: Float[Tensor, "f g"]
    """Gumbel noise to draw, for each F row's image, one negative caption of its negative group (G samples)."""
    noise_first_FG: Float[Tensor, "f g"]
    """Gumbel noise to draw, for each F row's caption, one negative image of its negative group."""
    masked: MaskedTokens
    """Masked captions of the F rows, in that order."""
    ledger_B: Int[Tensor, " b"]
    """64-bit hash of (source, key, caption choice) of each sample: what the ledger adds up."""
    second_text: Tokens | None = None
    """Another caption of each image, B rows; None unless two are wanted."""
    pixel_scale: PixelScale | None = None
    """How pictures that are bytes are to be normalised."""


@dataclass(frozen=True, kw_only=True)
class RegionBatch(TensorRecord):
    """R texts about parts of B images, on one rank; a negative group's texts are about its own images."""

    images_BCHW: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]
    """Crops: normalised float32, or bytes, for `Batch.normalised` on the device."""
    image_of_R: Int[Tensor, " r"]
    """Which image each text is about."""
    mask_RN: Bool[Tensor, "r n"]
    """Image tokens of the region: token 0 and the patches under its box."""
    box_R4: Float[Tensor, "r 4"]
    """Centre x, centre y, width, height as shares of the image's sides, float32."""
    whole_R: Bool[Tensor, " r"]
    """True for captions of a whole image, whose box is no target."""
    text: Tokens
    """R texts."""
    identity_R: Int[Tensor, " r"]
    """63-bit hash of what each text is about; equal values are positives of each other."""
    matching_row_F: Int[Tensor, " f"]
    """The texts that go through the fusion encoder."""
    noise_second_FG: Float[Tensor, "f g"]
    """Gumbel noise to draw, for each F row's region, one negative text of its group (G texts)."""
    noise_first_FG: Float[Tensor, "f g"]
    """Gumbel noise to draw, for each F row's text, one negative region of its group."""
    masked: MaskedTokens
    """Masked texts of the F rows."""
    ledger_B: Int[Tensor, " b"]
    """64-bit hash of (source, key, crop, flip, texts) of each image."""
    pixel_scale: PixelScale | None = None
    """How pictures that are bytes are to be normalised."""


@dataclass(frozen=True, kw_only=True)
class TextPairBatch(TensorRecord):
    """P sentence pairs on one rank; each distinct text of the batch stands once in `text`.

    Samples are groups of translations of one sentence: S samples of K pairs each, P = S · K, pairs of a sample
    consecutive. Fusion rows use the first pair of a sample, with the roles of its two sides swapped by a coin.
    """

    text: Tokens
    """U distinct texts."""
    first_P: Int[Tensor, " p"]
    """Row in `text` of each pair's side a."""
    second_P: Int[Tensor, " p"]
    """Row in `text` of each pair's side b."""
    identity_P: Int[Tensor, " p"]
    """63-bit hash of the pair's group."""
    matching_row_F: Int[Tensor, " f"]
    """The samples (indices into S) that go through the fusion encoder as positives."""
    memory_S: Int[Tensor, " s"]
    """Row in `text` that plays the image's role ("text 1") for each sample's first pair."""
    query_S: Int[Tensor, " s"]
    """Row in `text` of the other side ("text 2"), which is the query."""
    identity_S: Int[Tensor, " s"]
    """63-bit hash of each sample's group."""
    noise_second_FG: Float[Tensor, "f g"]
    """Gumbel noise to draw a negative query for each F row's memory inside its negative group (G samples)."""
    noise_first_FG: Float[Tensor, "f g"]
    """Gumbel noise to draw a negative memory for each F row's query."""
    masked: MaskedTokens
    """Masked copies of the F rows' "text 1" (`memory_S`), to be predicted given "text 2"; with `tlm` of both in one
    text, to be predicted without memory."""
    ledger_S: Int[Tensor, " s"]
    """64-bit hash of (source, group, chosen pairs) of each sample."""
    tlm: bool = False
    """Translation language modelling in place of matching and conditional masked-LM."""


@dataclass(frozen=True, kw_only=True)
class Batch(TensorRecord):
    """One rank's share of one step."""

    step: int
    """The step k, counted from 0."""
    image_text: ImageTextBatch | None
    """None in a step (or update) without it."""
    text_pair: TextPairBatch | None
    """None in a step (or update) without it."""
    regions: RegionBatch | None = None
    """None in a step (or update) without it."""
    update: int = 0
    """Which of the step's updates this is the share of, counted from 0 (schedule "alternate" has several)."""
    bad_samples: tuple[BadSample, ...] = ()
    """Samples of this rank's share that could not be used and were replaced."""
    rest: tuple[Batch, ...] = ()
    """The step's further micro-batches, each with its own share of every view (`DataConfig.micro_batches`)."""
    exposure: tuple[tuple[str, int], ...] = ()
    """What this rank's share shows, by source and language (`cclm.data.exposure`)."""

    @property
    def parts(self) -> tuple[Batch, ...]:
        """All micro-batches of the step."""
        return (replace(self, rest=()), *self.rest)

    def normalised(self) -> Batch:
        """Return a copy whose pictures are normalised floats, on the device where they are."""
        images, regions = self.image_text, self.regions
        return replace(
            self,
            image_text=None if images is None else normalised(images),
            regions=None if regions is None else normalised(regions),
        )


Pictures = TypeVar("Pictures", ImageTextBatch, RegionBatch)


def normalised(view: Pictures) -> Pictures:
    """A view with float pictures (itself, if they are floats already)."""
    if view.images_BCHW.dtype != torch.uint8:
        return view
    assert view.pixel_scale is not None, "bytes come with their scale"
    return replace(view, images_BCHW=view.pixel_scale(view.images_BCHW))
